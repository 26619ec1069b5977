//! A job and its life: pure types and decisions, no I/O.

pub mod approval;
mod brief;
pub mod decision;
pub mod event;
pub mod exec;
pub mod failure;
pub mod group;
pub mod invalid;
pub mod limit;
pub mod noop;
mod pattern;
pub mod retry;
pub mod spec;
pub mod state;
pub mod wait;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, ApiKeyId, ConversationId, JobId, ScheduleId, TenantId, WorkerId};
use crate::money::Usd;

pub use brief::Brief;
pub use failure::{Failure, FailureCode};
pub use retry::{Backoff, RetryRule};
pub use spec::{Concurrency, Kind, Rate, Strategy};
pub use state::{InvalidTransition, JobEvent, JobState, StateName};
pub use wait::{Wait, WaitFor, Woken};

/// Tokens, money and machine time over all attempts of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Tokens sent to models, cached ones included.
    pub input_tokens: u64,
    /// Tokens that models wrote.
    pub output_tokens: u64,
    /// Of the input, tokens read from a provider's cache.
    pub cached_input_tokens: u64,
    /// US dollars, decimal.
    pub cost_usd: String,
    /// Wall time in sandboxes, ms.
    pub sandbox_ms: u64,
    /// CPU time in sandboxes, ms.
    pub cpu_ms: u64,
    /// Most memory at any moment, bytes.
    pub memory_peak_bytes: u64,
}

impl Usage {
    /// Adds what another attempt used.
    pub fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cached_input_tokens += other.cached_input_tokens;
        self.sandbox_ms += other.sandbox_ms;
        self.cpu_ms += other.cpu_ms;
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        let (ours, theirs) = (self.cost_usd.parse::<Usd>(), other.cost_usd.parse::<Usd>());
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => self.cost_usd = (ours + theirs).to_string(),
            (Err(_), Ok(_)) => self.cost_usd.clone_from(&other.cost_usd),
            (_, Err(_)) => {}
        }
    }
}

/// A job as its row says: everything but the input and the result.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What it does.
    pub kind: Kind,
    /// The named queue it waits in.
    pub queue: String,
    /// What a slot must be to run it: see [`spec::class_of`].
    pub class: String,
    /// Labels that a worker must have.
    pub labels: Vec<String>,
    /// 0 to 9, 9 first.
    pub priority: u8,
    /// Where it is in its life.
    pub state: JobState,
    /// Claims so far: the fence.
    pub attempt: u32,
    /// Attempts that failed by the job's own fault.
    pub failures: u32,
    /// Workers that died under it.
    pub losses: u32,
    /// Failures after which it is not tried again.
    pub max_attempts: u32,
    /// How long it waits between failures.
    pub backoff: Backoff,
    /// What is tried again otherwise than usual: see [`RetryRule`].
    pub retry_on: Vec<String>,
    /// Longest duration of one attempt, ms, from the start of its process.
    pub timeout_ms: u64,
    /// When the submitter wanted it to run.
    pub run_at: Option<DateTime<Utc>>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last became queued.
    pub queued_at: Option<DateTime<Utc>>,
    /// When its current, or last, attempt was claimed.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Who holds, or last held, the attempt.
    pub worker_id: Option<WorkerId>,
    /// When somebody asked to cancel it.
    pub cancel_requested_at: Option<DateTime<Utc>>,
    /// Number of the last event that a committed change of the row took.
    pub seq: u64,
    /// Why it failed, or why its last attempt did.
    pub error: Option<Failure>,
    /// What it used so far.
    pub usage: Usage,
    /// Its concurrency key.
    pub concurrency: Option<Concurrency>,
    /// Its rate key.
    pub rate: Option<Rate>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
    /// The key that submitted it.
    pub api_key_id: Option<ApiKeyId>,
    /// The submitter's own notes.
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The agent that it runs.
    pub agent_id: Option<AgentId>,
    /// The version of the agent.
    pub agent_version: Option<u32>,
    /// The conversation that it is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// The schedule that fired it.
    pub schedule_id: Option<ScheduleId>,
    /// The job that waits for it.
    pub parent_id: Option<JobId>,
    /// The finished job that it repeats.
    pub redrive_of: Option<JobId>,
    /// The last job that repeats it.
    pub redriven_as: Option<JobId>,
    /// What it waits for, or waited for last; none when it never waited.
    pub waits_for: Option<WaitFor>,
    /// What ended its last wait.
    pub woken_by: Option<Woken>,
}

/// A job about to be inserted.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id; the partition it goes to follows from it.
    pub id: JobId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What the submitter asked for.
    pub spec: spec::JobSpec,
    /// The class, from [`spec::class_of`].
    pub class: String,
    /// JSON of the input.
    pub input: Vec<u8>,
    /// When it is accepted.
    pub created_at: DateTime<Utc>,
    /// The key that submitted it.
    pub api_key_id: Option<ApiKeyId>,
    /// What it belongs to.
    pub links: Links,
}

/// What a job belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The agent that it runs, and its version.
    pub agent: Option<(AgentId, u32)>,
    /// The conversation that it is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// The schedule that fired it.
    pub schedule_id: Option<ScheduleId>,
    /// The job that waits for it.
    pub parent_id: Option<JobId>,
    /// The finished job that it repeats.
    pub redrive_of: Option<JobId>,
}
