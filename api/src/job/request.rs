//! A submission: checked whole, so that every fault is named at once, and turned into a job about to be inserted.

use chrono::{DateTime, Utc};
use common::ids::{ApiKeyId, JobId};
use common::job::spec::{JobSpec, SlotClass, class_of};
use common::job::{Concurrency, Kind, Links, NewJob, Strategy};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::fields::{Bounds, ConcurrencyFields, JobFields, RateFields};
use super::input::Runnable;
use crate::auth::Caller;
use crate::extract::from_json;
use crate::problem::{FieldError, Problem};
use crate::state::App;

/// The kinds that anyone can submit. Chat turns are submitted on their conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Submittable {
    /// Runs a program in a sandbox.
    Exec,
    /// Runs an agent once.
    AgentRun,
    /// Submits jobs, waits for all of them and collects what came out.
    Group,
    /// Does nothing, through the whole queue.
    Noop,
}

impl From<Submittable> for Kind {
    fn from(kind: Submittable) -> Self {
        match kind {
            Submittable::Exec => Self::Exec,
            Submittable::AgentRun => Self::AgentRun,
            Submittable::Group => Self::Group,
            Submittable::Noop => Self::Noop,
        }
    }
}

/// The body of `POST /jobs`.
///
/// The fields of [`JobFields`] are repeated because serde cannot refuse unknown fields through a flattened struct.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What it does. Required.
    #[schema(required, nullable = false)]
    kind: Option<Submittable>,
    /// What it does it with: the input of the kind.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    input: Option<Box<RawValue>>,
    /// The named queue; `default`.
    queue: Option<String>,
    /// 0 to 9, 9 first; 5.
    #[schema(maximum = 9)]
    priority: Option<u8>,
    /// When it may run at the earliest, at most 90 days ahead; this or `delay`.
    run_at: Option<DateTime<Utc>>,
    /// How long after its submission it may run at the earliest, such as `90s`; this or `run_at`.
    #[schema(example = "90s")]
    delay: Option<String>,
    /// Labels that its worker must have.
    labels: Option<Vec<String>>,
    /// Longest duration of one attempt; `60s`.
    #[schema(example = "60s")]
    timeout: Option<String>,
    /// Failures after which it is not tried again; 3.
    #[schema(minimum = 1, maximum = 100)]
    max_attempts: Option<u32>,
    /// How long it waits between failures.
    #[schema(value_type = Option<super::fields::BackoffFields>)]
    backoff: Option<common::job::Backoff>,
    /// Error codes that are retried although they usually are not, and with a `!` before them those that are not although
    /// they usually are: `["timeout", "!sandbox_failed"]`. With `!worker_lost` a job whose worker dies fails.
    #[schema(value_type = Option<Vec<String>>)]
    retry_on: Option<Vec<common::job::RetryRule>>,
    /// How many jobs of one key may run at once.
    concurrency: Option<ConcurrencyFields>,
    /// How many jobs of one key may start within a window of time.
    rate: Option<RateFields>,
    /// The submitter's own name for its user.
    user_id: Option<String>,
    /// The submitter's own notes: at most 64 keys and 16 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl JobRequest {
    fn split(self) -> (Option<Submittable>, Option<Box<RawValue>>, JobFields) {
        let fields = JobFields {
            queue: self.queue,
            priority: self.priority,
            run_at: self.run_at,
            delay: self.delay,
            labels: self.labels,
            timeout: self.timeout,
            max_attempts: self.max_attempts,
            backoff: self.backoff,
            retry_on: self.retry_on,
            concurrency: self.concurrency,
            rate: self.rate,
            user_id: self.user_id,
            metadata: self.metadata,
        };
        (self.kind, self.input, fields)
    }
}

/// Checks a submission that stands at `base` in the body, and makes the job.
///
/// # Errors
/// 400, 413 or 422 that names every field at fault; 404 for an agent that is not the caller's; 503.
pub async fn prepare(app: &App, caller: &Caller, json: &str, base: &str) -> Result<NewJob, Problem> {
    let request: JobRequest = from_json(json, base)?;
    let (kind, input, fields) = request.split();
    let Some(kind) = kind else {
        return Err(Problem::field(format!("{base}/kind"), "is required"));
    };
    let input = input.as_deref().map_or("{}", RawValue::get);
    let input = if input == "null" { "{}" } else { input };
    let runnable = Runnable::read(app, caller, kind, input, &format!("{base}/input")).await?;
    job_at(app, caller, kind.into(), fields, runnable, base)
}

/// The job that runs a checked input, with fields that stand at the root of the body.
///
/// # Errors
/// 422 that names every field at fault.
pub fn job_for(
    app: &App,
    caller: &Caller,
    kind: Kind,
    fields: JobFields,
    runnable: Runnable,
) -> Result<NewJob, Problem> {
    job_at(app, caller, kind, fields, runnable, "")
}

/// The same with fields that stand at `base` in the body.
///
/// # Errors
/// As [`job_for`].
pub(crate) fn job_at(
    app: &App,
    caller: &Caller,
    kind: Kind,
    fields: JobFields,
    runnable: Runnable,
    base: &str,
) -> Result<NewJob, Problem> {
    let (timeout_default, timeout_max) = runnable.timeouts(kind, &app.config().submit);
    let now = app.clock().now();
    let bounds = Bounds {
        submit: &app.config().submit,
        tenant: &caller.tenant,
        now,
        timeout_default,
        timeout_max,
    };
    let mut spec = fields
        .spec(kind, bounds)
        .map_err(|errors| Problem::invalid(below(base, errors)))?;
    if let Some(key) = runnable.alone.clone() {
        if spec.concurrency.is_some() {
            let detail = "cannot be combined with workspace: such runs have a key of their own";
            return Err(Problem::field(format!("{base}/concurrency"), detail));
        }
        spec.concurrency = Some(Concurrency {
            key,
            limit: 1,
            strategy: Strategy::Queue,
        });
    }
    Ok(new_job(caller, spec, runnable, now))
}

fn new_job(caller: &Caller, spec: JobSpec, runnable: Runnable, now: DateTime<Utc>) -> NewJob {
    NewJob {
        id: JobId::new(),
        tenant_id: caller.tenant_id(),
        class: class_of(runnable.slot, &spec.labels),
        spec,
        input: runnable.input,
        created_at: now,
        api_key_id: Some::<ApiKeyId>(caller.key_id),
        links: Links {
            agent: runnable.agent,
            ..Links::default()
        },
    }
}

pub(crate) fn below(base: &str, mut errors: Vec<FieldError>) -> Vec<FieldError> {
    for error in &mut errors {
        if let Some(pointer) = &mut error.pointer {
            pointer.insert_str(0, base);
        }
    }
    errors
}

/// The slot of a kind that needs no look at its input.
pub(crate) fn slot_of(kind: Submittable) -> SlotClass {
    match kind {
        Submittable::Exec => SlotClass::Sandbox,
        Submittable::Noop | Submittable::AgentRun | Submittable::Group => SlotClass::Light,
    }
}
