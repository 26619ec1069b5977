//! Jobs as everybody reads them.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use common::ids::WorkerId;
use common::job::exec::ExecInput;
use common::job::group::GroupInput;
use common::job::{Backoff, Concurrency, Failure, Job, JobState, Kind, NewJob, Rate, StateName, Usage};
use common::store::attempts::Attempt;
use common::store::jobs::JobDetail;
use common::store::usage::Totals;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::timestamp;

/// A job. Lists leave out `input` and `result`.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView<'a> {
    /// Its id, a `UUIDv7`.
    id: Uuid,
    /// What it does: `exec`, `agent_run`, `chat_turn`, `group` or `noop`.
    #[schema(value_type = String)]
    kind: Kind,
    /// The named queue.
    queue: &'a str,
    /// 0 to 9, 9 first.
    priority: u8,
    /// Where it is in its life.
    #[schema(value_type = JobStateName)]
    state: StateName,
    /// Claims so far.
    attempt: u32,
    /// Attempts that failed by the job's own fault; they count towards `max_attempts`.
    failures: u32,
    /// Workers that died under it.
    losses: u32,
    /// Failures after which it is not tried again.
    max_attempts: u32,
    /// The finished job that it repeats.
    redrive_of: Option<Uuid>,
    /// The last job that repeats it.
    redriven_as: Option<Uuid>,
    /// When it was accepted.
    #[serde(serialize_with = "timestamp::serialize")]
    created_at: DateTime<Utc>,
    /// When the submitter wanted it to run.
    #[serde(serialize_with = "timestamp::serialize")]
    run_at: Option<DateTime<Utc>>,
    /// When a scheduled or retrying job becomes queued; the deadline of one that waits.
    #[serde(serialize_with = "timestamp::serialize")]
    due_at: Option<DateTime<Utc>>,
    /// When it last became queued.
    #[serde(serialize_with = "timestamp::serialize")]
    queued_at: Option<DateTime<Utc>>,
    /// When its current, or last, attempt was claimed.
    #[serde(serialize_with = "timestamp::serialize")]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(serialize_with = "timestamp::serialize")]
    finished_at: Option<DateTime<Utc>>,
    /// When somebody asked to cancel it.
    #[serde(serialize_with = "timestamp::serialize")]
    cancel_requested_at: Option<DateTime<Utc>>,
    /// Who holds, or last held, the attempt.
    worker_id: Option<Uuid>,
    /// What it was submitted with; values of `env` are never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    input: Option<InputView<'a>>,
    /// What came out of it.
    #[schema(value_type = Option<Object>)]
    result: Option<&'a RawValue>,
    /// Why it failed, or why its last attempt did.
    #[schema(value_type = Option<JobError>)]
    error: Option<&'a Failure>,
    /// What it used over all attempts.
    usage: UsageView,
    /// Labels that its worker must have.
    labels: &'a [String],
    /// Longest duration of one attempt.
    timeout: String,
    /// How long it waits between failures.
    #[schema(value_type = super::fields::BackoffFields)]
    backoff: Backoff,
    /// Error codes that are retried although they usually are not.
    retry_on: &'a [String],
    /// Its concurrency key.
    #[schema(value_type = Option<super::fields::ConcurrencyFields>)]
    concurrency: Option<&'a Concurrency>,
    /// Its rate key.
    #[schema(value_type = Option<super::fields::RateFields>)]
    rate: Option<&'a Rate>,
    /// The agent that it runs.
    agent_id: Option<Uuid>,
    /// The version of the agent.
    agent_version: Option<u32>,
    /// The conversation that it is a turn of.
    conversation_id: Option<Uuid>,
    /// The schedule that fired it.
    schedule_id: Option<Uuid>,
    /// The job that waits for it.
    parent_id: Option<Uuid>,
    /// The submitter's own name for its user.
    user_id: Option<&'a str>,
    /// The submitter's own notes.
    #[schema(value_type = Object)]
    metadata: &'a Map<String, Value>,
    /// Why a job that may run does not, or what it waits for; absent from lists.
    waiting_for: Option<String>,
}

/// The states of a job.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used; the type itself is common's")]
pub(crate) enum JobStateName {
    Scheduled,
    Queued,
    Running,
    Waiting,
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
}

/// Why a job failed.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; the type itself is common's")]
pub(crate) struct JobError {
    /// What happened, for programs.
    code: String,
    /// What happened, for people.
    message: String,
}

/// Tokens, money and machine time over all attempts of a job.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = JobUsage)]
pub(crate) struct UsageView {
    input_tokens: u64,
    output_tokens: u64,
    cached_input_tokens: u64,
    /// US dollars, decimal.
    cost_usd: String,
    /// Wall time in sandboxes, ms.
    sandbox_ms: u64,
    /// CPU time in sandboxes, ms.
    cpu_ms: u64,
    /// Most memory at any moment.
    memory_peak_bytes: u64,
}

impl From<&Usage> for UsageView {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cached_input_tokens: usage.cached_input_tokens,
            cost_usd: if usage.cost_usd.is_empty() {
                "0".to_owned()
            } else {
                usage.cost_usd.clone()
            },
            sandbox_ms: usage.sandbox_ms,
            cpu_ms: usage.cpu_ms,
            memory_peak_bytes: usage.memory_peak_bytes,
        }
    }
}

/// The input of a job as it may be shown.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum InputView<'a> {
    /// As it was submitted.
    Whole(&'a RawValue),
    /// Without the values of `env`.
    Redacted(Box<ExecInput>),
    /// The jobs of a group, each without the values of `env`.
    Group(Value),
}

impl<'a> InputView<'a> {
    fn new(kind: Kind, json: &'a [u8]) -> Option<Self> {
        if kind == Kind::Exec
            && let Ok(input) = serde_json::from_slice::<ExecInput>(json)
            && !input.env.is_empty()
        {
            return Some(Self::Redacted(Box::new(input.redacted())));
        }
        if kind == Kind::Group {
            let input: GroupInput = serde_json::from_slice(json).ok()?;
            return Some(Self::Group(input.shown()));
        }
        serde_json::from_slice(json).ok().map(Self::Whole)
    }
}

impl<'a> JobView<'a> {
    /// A job without its input and result.
    pub fn new(job: &'a Job) -> Self {
        let due_at = match job.state {
            JobState::Scheduled { due_at } | JobState::Retrying { due_at } => Some(due_at),
            JobState::Waiting { deadline } => deadline,
            _ => None,
        };
        Self {
            id: job.id.uuid(),
            kind: job.kind,
            queue: &job.queue,
            priority: job.priority,
            state: job.state.name(),
            attempt: job.attempt,
            failures: job.failures,
            losses: job.losses,
            max_attempts: job.max_attempts,
            redrive_of: job.redrive_of.map(Uuid::from),
            redriven_as: job.redriven_as.map(Uuid::from),
            created_at: job.created_at,
            run_at: job.run_at,
            due_at,
            queued_at: job.queued_at,
            started_at: job.started_at,
            finished_at: job.finished_at,
            cancel_requested_at: job.cancel_requested_at,
            worker_id: job.worker_id.map(Uuid::from),
            input: None,
            result: None,
            error: job.error.as_ref(),
            usage: UsageView::from(&job.usage),
            labels: &job.labels,
            timeout: humantime::format_duration(std::time::Duration::from_millis(job.timeout_ms)).to_string(),
            backoff: job.backoff,
            retry_on: &job.retry_on,
            concurrency: job.concurrency.as_ref(),
            rate: job.rate.as_ref(),
            agent_id: job.agent_id.map(Uuid::from),
            agent_version: job.agent_version,
            conversation_id: job.conversation_id.map(Uuid::from),
            schedule_id: job.schedule_id.map(Uuid::from),
            parent_id: job.parent_id.map(Uuid::from),
            user_id: job.user_id.as_deref(),
            metadata: &job.metadata,
            waiting_for: None,
        }
    }

    /// A job with everything.
    pub fn detailed(detail: &'a JobDetail, waiting_for: Option<String>) -> Self {
        Self {
            input: InputView::new(detail.job.kind, &detail.input),
            result: detail
                .result
                .as_deref()
                .and_then(|json| serde_json::from_slice(json).ok()),
            waiting_for,
            ..Self::new(&detail.job)
        }
    }

    /// The same with what its calls of models used: facts of every attempt, those that were lost included.
    pub fn metered(mut self, totals: Option<&Totals>) -> Self {
        if let Some(totals) = totals {
            self.usage = UsageView {
                input_tokens: totals.input_tokens,
                output_tokens: totals.output_tokens,
                cached_input_tokens: totals.cached_input_tokens,
                cost_usd: totals.cost.to_string(),
                ..self.usage
            };
        }
        self
    }

    /// A job as it is at the moment of its insertion.
    pub fn accepted(job: &'a NewJob) -> Self {
        const UNUSED: &Usage = &Usage {
            input_tokens: 0,
            output_tokens: 0,
            cached_input_tokens: 0,
            cost_usd: String::new(),
            sandbox_ms: 0,
            cpu_ms: 0,
            memory_peak_bytes: 0,
        };
        let later = job.spec.run_at.filter(|run_at| *run_at > job.created_at);
        Self {
            id: job.id.uuid(),
            kind: job.spec.kind,
            queue: &job.spec.queue,
            priority: job.spec.priority,
            state: if later.is_some() {
                StateName::Scheduled
            } else {
                StateName::Queued
            },
            attempt: 0,
            failures: 0,
            losses: 0,
            max_attempts: job.spec.max_attempts,
            redrive_of: job.links.redrive_of.map(Uuid::from),
            redriven_as: None,
            created_at: job.created_at,
            run_at: job.spec.run_at,
            due_at: later,
            queued_at: if later.is_some() { None } else { Some(job.created_at) },
            started_at: None,
            finished_at: None,
            cancel_requested_at: None,
            worker_id: None,
            input: None,
            result: None,
            error: None,
            usage: UsageView::from(UNUSED),
            labels: &job.spec.labels,
            timeout: humantime::format_duration(job.spec.timeout).to_string(),
            backoff: job.spec.backoff,
            retry_on: &job.spec.retry_on,
            concurrency: job.spec.concurrency.as_ref(),
            rate: job.spec.rate.as_ref(),
            agent_id: job.links.agent.map(|(id, _)| id.into()),
            agent_version: job.links.agent.map(|(_, version)| version),
            conversation_id: job.links.conversation_id.map(Uuid::from),
            schedule_id: job.links.schedule_id.map(Uuid::from),
            parent_id: job.links.parent_id.map(Uuid::from),
            user_id: job.spec.user_id.as_deref(),
            metadata: &job.spec.metadata,
            waiting_for: None,
        }
    }
}

/// One attempt of a job. The one under way has no end and no outcome.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptView<'a> {
    /// Its number, from 1.
    attempt: u32,
    /// Who runs, or ran, it.
    worker_id: Uuid,
    /// When it was claimed.
    started_at: DateTime<Utc>,
    /// When it ended.
    finished_at: Option<DateTime<Utc>>,
    /// What became of the job: `succeeded`, `failed`, `retrying`, `cancelled`, `interrupted`, `lost` or `waiting`.
    #[schema(value_type = Option<String>)]
    outcome: Option<Cow<'a, str>>,
    /// Why it failed.
    #[schema(value_type = Option<JobError>)]
    error: Option<AttemptError<'a>>,
}

#[derive(Clone, Debug, Serialize)]
struct AttemptError<'a> {
    code: &'a str,
    message: &'a str,
}

impl<'a> AttemptView<'a> {
    /// An attempt that ended.
    pub fn ended(attempt: &'a Attempt) -> Self {
        Self {
            attempt: attempt.attempt,
            worker_id: attempt.worker_id.uuid(),
            started_at: attempt.started_at,
            finished_at: Some(attempt.finished_at),
            outcome: Some(Cow::Borrowed(&attempt.outcome)),
            error: attempt
                .error
                .as_ref()
                .map(|(code, message)| AttemptError { code, message }),
        }
    }

    /// The attempt under way.
    pub fn running(attempt: u32, worker_id: WorkerId, started_at: DateTime<Utc>) -> Self {
        Self {
            attempt,
            worker_id: worker_id.uuid(),
            started_at,
            finished_at: None,
            outcome: None,
            error: None,
        }
    }
}
