//! Schedules: what is to be fired, when, and what happens to due times that come too late or too early. Pure.

pub mod decide;
pub mod job;
pub mod plan;
pub mod template;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cron::Cron;
use crate::ids::{AgentId, ConversationId, JobId, ScheduleId, TenantId};
use crate::job::spec::JobSpec;

/// What happens at a due time while the job of the last one has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Overlap {
    /// Nothing: the due time is skipped.
    #[default]
    Skip,
    /// A job that starts when the other has ended; skipped when one waits already.
    Queue,
    /// A job that starts when all before it have ended.
    QueueAll,
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
            Self::QueueAll => "queue_all",
            Self::CancelRunning => "cancel_running",
            Self::Allow => "allow",
        }
    }

    /// The policy that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Skip,
            Self::Queue,
            Self::QueueAll,
            Self::CancelRunning,
            Self::Allow,
        ]
        .into_iter()
        .find(|overlap| overlap.as_str() == text)
    }

    /// Whether its jobs run one after another, by a limit of their own.
    pub fn is_in_turn(self) -> bool {
        matches!(self, Self::Queue | Self::QueueAll)
    }
}

/// Which of the due times that passed during a downtime, within the catch-up window, are fired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Misfire {
    /// None of them.
    None,
    /// The last one, unless one is due on time.
    Last,
    /// Each of them.
    #[default]
    All,
}

impl Misfire {
    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Last => "last",
            Self::All => "all",
        }
    }

    /// The policy that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Last, Self::All]
            .into_iter()
            .find(|misfire| misfire.as_str() == text)
    }
}

/// When a schedule is due.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The expression and its zone.
    pub cron: Cron,
    /// How old a due time may be and still be fired.
    pub catch_up: Duration,
    /// Which due times of that age are.
    pub misfire: Misfire,
    /// The longest time by which fires are put off, to spread schedules of the same moment.
    pub jitter: Duration,
    /// No due time before this.
    pub starts_at: Option<DateTime<Utc>>,
    /// No due time after this.
    pub ends_at: Option<DateTime<Utc>>,
    /// No due time after so many have made a job.
    pub max_fires: Option<u64>,
}

impl Timing {
    /// Due at the times of an expression, and nothing more.
    pub fn new(cron: Cron) -> Self {
        Self {
            cron,
            catch_up: Duration::ZERO,
            misfire: Misfire::All,
            jitter: Duration::ZERO,
            starts_at: None,
            ends_at: None,
            max_fires: None,
        }
    }

    /// Whether both are due at the same times.
    pub fn is_due_like(&self, other: &Self) -> bool {
        let bounds = |timing: &Self| (timing.starts_at, timing.ends_at, timing.jitter, timing.max_fires);
        self.cron == other.cron && bounds(self) == bounds(other)
    }
}

/// How a target was written down by its submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As `agent_id` and `input`.
    Agent,
    /// As `conversation_id` and `input`.
    Turn,
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
    /// The conversation that a turn is taken of, whose agent answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation_id: Option<ConversationId>,
    /// The job's fields.
    pub spec: JobSpec,
    /// JSON of the job's input; where a saved agent is run, without the agent, and for a turn the message's `parts`.
    pub input: Box<RawValue>,
}

impl Target {
    /// Whether its templates name the last result.
    pub fn names_last_result(&self) -> bool {
        let json = self.input.get();
        template::has_templates(json)
            && serde_json::from_str(json).is_ok_and(|input| template::names_last_result(&input))
    }
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
    /// The job before that.
    pub prior_job_id: Option<JobId>,
    /// Due times that made a job; fires by hand and backfills do not count.
    pub fired: u64,
    /// After so many failed jobs in a row it is paused.
    pub pause_after_failures: Option<u32>,
    /// Jobs that failed since the last that succeeded.
    pub failures_in_row: u32,
    /// Grows with each edit.
    pub version: u64,
    /// When it was saved first.
    pub created_at: DateTime<Utc>,
    /// When it was edited last.
    pub updated_at: DateTime<Utc>,
}

impl Schedule {
    /// The first due time after `now`; `None` while it is paused, and when it is over.
    pub fn first(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let goes_on = self.enabled && self.fires_left() > 0;
        if goes_on { plan::first(&self.timing, now) } else { None }
    }

    /// How many more due times may make a job.
    pub fn fires_left(&self) -> u64 {
        self.timing
            .max_fires
            .map_or(u64::MAX, |max| max.saturating_sub(self.fired))
    }

    /// By how much this schedule's fires are put off: always the same share of its jitter.
    pub fn delay(&self) -> TimeDelta {
        // The last six bytes of a UUIDv7 are random.
        let random = self.id.uuid().as_u128() & 0xffff_ffff_ffff;
        let micros = (self.timing.jitter.as_micros() * random) >> 48;
        TimeDelta::microseconds(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The concurrency key that holds jobs of a schedule that run one after another apart.
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
    /// Why there is none; or, of a backfill, why there was none at first.
    pub reason: Option<String>,
    /// Whether a person asked for it.
    pub manual: bool,
    /// Whether somebody asked for this due time afterwards.
    pub backfill: bool,
    /// Where the job is; `forgotten` when it is older than jobs are kept.
    pub job_state: Option<String>,
    /// The error code of a job that failed.
    pub job_error: Option<String>,
    /// When the job ended.
    pub job_ended_at: Option<DateTime<Utc>>,
}
