//! Schedules: what is to be fired, when, and what happens to due times that come too late or too early. Pure.

pub mod decide;
pub mod plan;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cron::Cron;
use crate::ids::{AgentId, JobId, ScheduleId, TenantId};
use crate::job::spec::JobSpec;

/// What happens at a due time while the job of the last one has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Overlap {
    /// Nothing: the due time is skipped.
    #[default]
    Skip,
    /// A job that starts when the other has ended.
    Queue,
    /// The other is cancelled, and a job is started.
    CancelRunning,
    /// A job, beside the other.
    Allow,
}

impl Overlap {
    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
            Self::CancelRunning => "cancel_running",
            Self::Allow => "allow",
        }
    }

    /// The policy that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Skip, Self::Queue, Self::CancelRunning, Self::Allow]
            .into_iter()
            .find(|overlap| overlap.as_str() == text)
    }
}

/// When a schedule is due.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The expression and its zone.
    pub cron: Cron,
    /// How old a due time may be and still be fired.
    pub catch_up: Duration,
    /// The longest time by which fires are put off, to spread schedules of the same moment.
    pub jitter: Duration,
    /// No due time before this.
    pub starts_at: Option<DateTime<Utc>>,
    /// No due time after this.
    pub ends_at: Option<DateTime<Utc>>,
}

impl Timing {
    /// Whether both are due at the same times.
    pub fn is_due_like(&self, other: &Self) -> bool {
        let bounds = |timing: &Self| (timing.starts_at, timing.ends_at, timing.jitter);
        self.cron == other.cron && bounds(self) == bounds(other)
    }
}

/// How a target was written down by its submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As `agent_id` and `input`.
    Agent,
    /// As a whole `job`.
    Job,
}

/// What a schedule submits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// How it was submitted.
    pub form: Form,
    /// The saved agent that is run, in its version of the moment of the fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// The job's fields.
    pub spec: JobSpec,
    /// JSON of the job's input; where a saved agent is run, without the agent.
    pub input: Box<RawValue>,
}

/// A saved schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// A name for people.
    pub name: String,
    /// When it is due.
    pub timing: Timing,
    /// What it submits.
    pub target: Target,
    /// What happens while the last job has not ended.
    pub overlap: Overlap,
    /// Whether it fires.
    pub enabled: bool,
    /// Why it does not.
    pub paused_reason: Option<String>,
    /// The next due time, without jitter.
    pub next_fire_at: Option<DateTime<Utc>>,
    /// The last due time that made a job.
    pub last_fire_at: Option<DateTime<Utc>>,
    /// That job.
    pub last_job_id: Option<JobId>,
    /// Grows with each edit.
    pub version: u64,
    /// When it was saved first.
    pub created_at: DateTime<Utc>,
    /// When it was edited last.
    pub updated_at: DateTime<Utc>,
}

impl Schedule {
    /// By how much this schedule's fires are put off: always the same share of its jitter.
    pub fn delay(&self) -> TimeDelta {
        // The last six bytes of a UUIDv7 are random.
        let random = self.id.uuid().as_u128() & 0xffff_ffff_ffff;
        let micros = (self.timing.jitter.as_micros() * random) >> 48;
        TimeDelta::microseconds(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The concurrency key that holds jobs of a schedule with [`Overlap::Queue`] apart.
    pub fn concurrency_key(&self) -> String {
        format!("schedule:{}", self.id)
    }
}

/// What became of a due time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// A job was made.
    Fired,
    /// No job was made, for the reason given.
    Skipped,
    /// It was too late; stands for all due times since the one before.
    Missed,
}

impl Outcome {
    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
        }
    }

    /// The outcome that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Fired, Self::Skipped, Self::Missed]
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

/// A due time that was decided.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[expect(clippy::struct_field_names, reason = "the names are the wire contract's")]
pub struct Fire {
    /// The due time, without jitter; for a manual fire, when it was asked for.
    pub fire_at: DateTime<Utc>,
    /// When it was decided.
    pub fired_at: DateTime<Utc>,
    /// What became of it.
    pub outcome: Outcome,
    /// The job.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<uuid::Uuid>))]
    pub job_id: Option<JobId>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Whether a person asked for it.
    pub manual: bool,
}
