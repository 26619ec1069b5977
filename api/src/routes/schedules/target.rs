//! What a schedule submits: checked as a submission of today, stored for every fire.

use std::collections::BTreeMap;

use common::ids::ConversationId;
use common::job::exec::ExecInput;
use common::job::group::GroupInput;
use common::job::invalid::escape;
use common::job::{Backoff, Concurrency, Kind, NewJob, Rate};
use common::schedule::{Form, Target, template};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::Caller;
use crate::extract::from_json;
use crate::job::{JobFields, Runnable, fits, job_at, prepare, split_at};
use crate::problem::{Code, FieldError, Problem};
use crate::routes::conversations::{SaidPart, answering, said};
use crate::state::App;

/// What is shown instead of a value of `env`.
const HIDDEN: &str = "[redacted]";

/// The input of a turn of a conversation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnInput {
    conversation_id: Option<String>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    parts: Option<Vec<SaidPart>>,
}

/// A job that takes a turn, without the fields that every job has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnJob {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    input: Option<Box<RawValue>>,
}

/// The target of `agent_id` and `input`.
///
/// # Errors
/// As a run of the agent would be refused.
pub(super) async fn of_agent(app: &App, caller: &Caller, agent_id: &str, input: &str) -> Result<Target, Problem> {
    let job = json!({ "kind": Kind::AgentRun, "input": { "agent_id": agent_id, "input": input } });
    from_job(app, caller, &job.to_string(), "", Form::Agent).await
}

/// The target of `conversation_id` and `input`.
///
/// # Errors
/// As a turn of the conversation would be refused.
pub(super) async fn of_turn(app: &App, caller: &Caller, conversation_id: &str, input: &str) -> Result<Target, Problem> {
    let job = json!({ "kind": Kind::ChatTurn, "input": { "conversation_id": conversation_id, "text": input } });
    let target = from_turn(app, caller, &job.to_string(), "").await?;
    Ok(Target {
        form: Form::Turn,
        ..target
    })
}

/// The target of a whole job, which stands at `/job` in the body. A hidden value of `env` is the `old` one.
///
/// # Errors
/// As the job would be refused.
pub(super) async fn of_job(app: &App, caller: &Caller, json: &str, old: Option<&Target>) -> Result<Target, Problem> {
    #[derive(Deserialize)]
    struct AnyKind {
        #[serde(default)]
        kind: Value,
    }
    if serde_json::from_str::<AnyKind>(json).is_ok_and(|job| job.kind == Kind::ChatTurn.as_str()) {
        return from_turn(app, caller, json, "/job").await;
    }
    let mut target = from_job(app, caller, json, "/job", Form::Job).await?;
    unhide(&mut target, old)?;
    Ok(target)
}

async fn from_turn(app: &App, caller: &Caller, json: &str, base: &str) -> Result<Target, Problem> {
    let (turn, fields): (TurnJob, JobFields) = split_at(json, base, &["kind", "input"])?;
    let input = turn.input.as_deref().map_or("{}", RawValue::get);
    let place = format!("{base}/input");
    fits(app, input, &place)?;
    let input: TurnInput = from_json(input, &place)?;
    let id = input
        .conversation_id
        .ok_or_else(|| Problem::field(format!("{place}/conversation_id"), "is required"))?;
    let absent = || Problem::not_found("conversation");
    let id: ConversationId = id.parse().map_err(|_garbage| absent())?;
    let conversation = app
        .store()
        .conversation(caller.tenant_id(), id)
        .await?
        .ok_or_else(absent)?;
    let agent = answering(app, caller, &conversation).await?;
    let parts = said(input.text, input.parts, &place)?;
    let said = json!({ "parts": parts });
    let runnable = Runnable {
        input: said.to_string().into_bytes(),
        slot: agent.definition.slot_class(),
        agent: None,
        timeout: Some(agent.definition.timeout),
        alone: None,
    };
    let job = job_at(app, caller, Kind::ChatTurn, fields, runnable, base)?;
    at_once(&job, base)?;
    // A message that was one text is refused where that stands.
    check_templates(&said, if base.is_empty() { "" } else { &place })?;
    Ok(Target {
        form: Form::Job,
        agent_id: None,
        conversation_id: Some(id),
        input: raw(&job.input)?,
        spec: job.spec,
    })
}

async fn from_job(app: &App, caller: &Caller, json: &str, base: &str, form: Form) -> Result<Target, Problem> {
    let job = prepare(app, caller, json, base).await?;
    at_once(&job, base)?;
    let agent_id = job.links.agent.map(|(id, _)| id);
    let mut input: Box<RawValue> = raw(&job.input)?;
    if agent_id.is_some() {
        // The agent is added at each fire, in its version of that moment.
        let mut fields: BTreeMap<&str, &RawValue> = serde_json::from_str(input.get()).map_err(unwritable)?;
        fields.retain(|name, _| !matches!(*name, "agent" | "agent_version"));
        input = to_raw_value(&fields).map_err(unwritable)?;
    }
    if template::has_templates(input.get()) {
        let place = if form == Form::Agent {
            String::new()
        } else {
            format!("{base}/input")
        };
        check_templates(&from_json(input.get(), &place)?, &place)?;
    }
    Ok(Target {
        form,
        agent_id,
        conversation_id: None,
        spec: job.spec,
        input,
    })
}

fn at_once(job: &NewJob, base: &str) -> Result<(), Problem> {
    if job.spec.run_at.is_none() {
        return Ok(());
    }
    Err(Problem::field(
        format!("{base}/run_at"),
        "is left out, as is delay: the schedule says when the job runs",
    ))
}

fn check_templates(input: &Value, base: &str) -> Result<(), Problem> {
    let faults = template::check(input).into_iter();
    let errors: Vec<FieldError> = faults
        .map(|fault| FieldError::body(format!("{base}{}", fault.pointer), fault.detail))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(errors))
    }
}

/// Puts the old values where the submitter sent back what was shown instead of them.
fn unhide(target: &mut Target, old: Option<&Target>) -> Result<(), Problem> {
    if target.spec.kind != Kind::Exec || !target.input.get().contains(HIDDEN) {
        return Ok(());
    }
    let env = |target: &Target| serde_json::from_str::<ExecInput>(target.input.get()).map(|input| input.env);
    let known = old.and_then(|old| env(old).ok()).unwrap_or_default();
    let mut input: Map<String, Value> = serde_json::from_str(target.input.get()).map_err(unwritable)?;
    let Some(Value::Object(values)) = input.get_mut("env") else {
        return Ok(());
    };
    let mut errors = Vec::new();
    for (name, value) in values.iter_mut().filter(|(_, value)| **value == HIDDEN) {
        match known.get(name) {
            Some(old) => *value = Value::String(old.clone()),
            None => errors.push(FieldError::body(
                format!("/job/input/env/{}", escape(name)),
                format!("is {HIDDEN}, which is shown instead of a value: write the value"),
            )),
        }
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    target.input = to_raw_value(&input).map_err(unwritable)?;
    Ok(())
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
    /// `exec`, `agent_run`, `chat_turn`, `group` or `noop`.
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
    #[schema(value_type = Option<Object>)]
    rate: Option<&'a Rate>,
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
            rate: spec.rate.as_ref(),
            user_id: spec.user_id.as_deref(),
            metadata: &spec.metadata,
        })
    }
}

/// What an agent is asked, or what is said in a conversation, for a target that was submitted so.
pub(super) fn asked(target: &Target) -> Option<String> {
    let fields: Value = serde_json::from_str(target.input.get()).ok()?;
    let text = match target.form {
        Form::Agent => &fields["input"],
        Form::Turn => &fields["parts"][0]["text"],
        Form::Job => return None,
    };
    Some(text.as_str().unwrap_or_default().to_owned())
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
    let named = [
        ("agent_id", target.agent_id.map(Uuid::from)),
        ("conversation_id", target.conversation_id.map(Uuid::from)),
    ];
    if let Some(fields) = input.as_object_mut() {
        for (name, id) in named {
            fields.extend(id.map(|id| (name.to_owned(), json!(id))));
        }
    }
    input
}
