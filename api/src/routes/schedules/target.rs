//! What a schedule submits: checked as a submission of today, stored for every fire.

use std::collections::BTreeMap;

use common::job::exec::ExecInput;
use common::job::group::GroupInput;
use common::job::{Backoff, Concurrency, Kind};
use common::schedule::{Form, Target};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::Caller;
use crate::job::prepare;
use crate::problem::{Code, Problem};
use crate::state::App;

/// The target of `agent_id` and `input`.
///
/// # Errors
/// As a run of the agent would be refused.
pub(super) async fn of_agent(app: &App, caller: &Caller, agent_id: &str, input: &str) -> Result<Target, Problem> {
    let job = json!({ "kind": Kind::AgentRun, "input": { "agent_id": agent_id, "input": input } });
    from_job(app, caller, &job.to_string(), "", Form::Agent).await
}

/// The target of a whole job, which stands at `/job` in the body.
///
/// # Errors
/// As the job would be refused.
pub(super) async fn of_job(app: &App, caller: &Caller, json: &str) -> Result<Target, Problem> {
    from_job(app, caller, json, "/job", Form::Job).await
}

async fn from_job(app: &App, caller: &Caller, json: &str, base: &str, form: Form) -> Result<Target, Problem> {
    let job = prepare(app, caller, json, base).await?;
    if job.spec.run_at.is_some() {
        return Err(Problem::field(
            format!("{base}/run_at"),
            "is left out, as is delay: the schedule says when the job runs",
        ));
    }
    let agent_id = job.links.agent.map(|(id, _)| id);
    let mut input: Box<RawValue> = raw(&job.input)?;
    if agent_id.is_some() {
        // The agent is added at each fire, in its version of that moment.
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(input.get()).map_err(unwritable)?;
        fields.retain(|name, _| !matches!(*name, "agent" | "agent_version"));
        input = to_raw_value(&fields).map_err(unwritable)?;
    }
    Ok(Target {
        form,
        agent_id,
        spec: job.spec,
        input,
    })
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Problem> {
    serde_json::from_slice(json).map_err(unwritable)
}

/// What was just written as JSON can be read as JSON, so this is a fault of ours.
fn unwritable(error: serde_json::Error) -> Problem {
    tracing::error!(
        error = &error as &dyn std::error::Error,
        "a schedule's target cannot be written down"
    );
    drop(error);
    Problem::new(Code::Internal, "the fault is in our log under this request's id")
}

/// The job of a schedule, in the form of a submission.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduledJob)]
pub(super) struct JobTarget<'a> {
    /// `exec`, `agent_run`, `group` or `noop`.
    #[schema(value_type = String)]
    kind: Kind,
    /// What it is submitted with; values of `env` are never shown. Lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
    queue: &'a str,
    priority: u8,
    labels: &'a [String],
    timeout: String,
    max_attempts: u32,
    #[schema(value_type = Object)]
    backoff: Backoff,
    retry_on: &'a [String],
    #[schema(value_type = Option<Object>)]
    concurrency: Option<&'a Concurrency>,
    user_id: Option<&'a str>,
    #[schema(value_type = Object)]
    metadata: &'a Map<String, Value>,
}

impl<'a> JobTarget<'a> {
    /// The job of a target that was submitted as one.
    pub(super) fn new(target: &'a Target, with_input: bool) -> Option<Self> {
        let spec = &target.spec;
        (target.form == Form::Job).then(|| Self {
            kind: spec.kind,
            input: if with_input { Some(shown(target)) } else { None },
            queue: &spec.queue,
            priority: spec.priority,
            labels: &spec.labels,
            timeout: humantime::format_duration(spec.timeout).to_string(),
            max_attempts: spec.max_attempts,
            backoff: spec.backoff,
            retry_on: &spec.retry_on,
            concurrency: spec.concurrency.as_ref(),
            user_id: spec.user_id.as_deref(),
            metadata: &spec.metadata,
        })
    }
}

/// What an agent is asked, for a target that was submitted so.
pub(super) fn asked(target: &Target) -> Option<String> {
    let fields: Value = serde_json::from_str(target.input.get()).ok()?;
    (target.form == Form::Agent).then(|| fields["input"].as_str().unwrap_or_default().to_owned())
}

fn shown(target: &Target) -> Value {
    let json = target.input.get();
    if target.spec.kind == Kind::Exec
        && let Ok(input) = serde_json::from_str::<ExecInput>(json)
        && !input.env.is_empty()
    {
        return serde_json::to_value(input.redacted()).unwrap_or_default();
    }
    if target.spec.kind == Kind::Group {
        return serde_json::from_str::<GroupInput>(json).map_or(Value::Null, |input| input.shown());
    }
    let mut input: Value = serde_json::from_str(json).unwrap_or_default();
    if let (Some(id), Some(fields)) = (target.agent_id, input.as_object_mut()) {
        fields.insert("agent_id".to_owned(), json!(Uuid::from(id)));
    }
    input
}
