//! The job of a fire: the schedule's target, with what it is made of at that moment.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::template::{self, Values};
use super::{Schedule, Target};
use crate::agent::AgentDefinition;
use crate::ids::{AgentId, ConversationId, JobId, TenantId};
use crate::job::spec::{SlotClass, class_of};
use crate::job::{Concurrency, Kind, Links, NewJob, Strategy};
use crate::message::{Message, Part, Role};

/// Longest input of a job after its templates were replaced, bytes.
const INPUT_MAX: usize = 4 * 1024 * 1024;

/// An agent as it is now.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Its version.
    pub version: u32,
    /// What it is.
    pub definition: AgentDefinition,
}

/// A conversation as it is now.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Its id.
    pub id: ConversationId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The agent that answers, where it is no saved one.
    pub agent: Option<AgentDefinition>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
}

/// What a job is made of beside its schedule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Means<'a> {
    /// The saved agent that runs or answers, if there is one that can be used.
    pub agent: Option<&'a Agent>,
    /// The conversation of a turn, if it is still there.
    pub talk: Option<&'a Talk>,
    /// JSON of the last result.
    pub last_result: Option<&'a [u8]>,
}

/// A job of a fire.
#[derive(Clone, Debug)]
pub struct Fired {
    /// The job. The id of a turn is made when its place in the conversation is known.
    pub job: NewJob,
    /// The message that it answers, where it is a turn.
    pub message: Option<Message>,
}

/// The job that a schedule submits for a due time.
///
/// # Errors
/// Why it cannot.
pub fn new_job(
    schedule: &Schedule,
    means: &Means<'_>,
    fire_at: DateTime<Utc>,
    last_fire_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Fired, String> {
    let target = &schedule.target;
    let mut spec = target.spec.clone();
    let asked = asked(schedule, means, fire_at, last_fire_at)?;
    let made = match (target.conversation_id, target.agent_id) {
        (Some(_), _) => turn(schedule.tenant_id, means, &asked, now)?,
        (None, Some(_)) => run(target, schedule.tenant_id, means, &asked)?,
        (None, None) => Made {
            slot: slot(spec.kind),
            input: asked.get().to_owned(),
            links: Links::default(),
            message: None,
        },
    };
    if target.conversation_id.is_some() && spec.user_id.is_none() {
        spec.user_id = means.talk.and_then(|talk| talk.user_id.clone());
    }
    if schedule.overlap.is_in_turn() && spec.concurrency.is_none() {
        spec.concurrency = Some(Concurrency {
            key: schedule.concurrency_key(),
            limit: 1,
            strategy: Strategy::Queue,
        });
    }
    let job = NewJob {
        id: JobId::new(),
        tenant_id: schedule.tenant_id,
        class: class_of(made.slot, &spec.labels),
        spec,
        input: made.input.into_bytes(),
        created_at: now,
        api_key_id: None,
        links: Links {
            schedule_id: Some(schedule.id),
            ..made.links
        },
    };
    Ok(Fired {
        job,
        message: made.message,
    })
}

/// What a kind of target makes of its input.
struct Made {
    slot: SlotClass,
    input: String,
    links: Links,
    message: Option<Message>,
}

fn slot(kind: Kind) -> SlotClass {
    match kind {
        Kind::Exec => SlotClass::Sandbox,
        Kind::Noop | Kind::AgentRun | Kind::ChatTurn | Kind::Group => SlotClass::Light,
    }
}

/// The input with its templates replaced.
fn asked(
    schedule: &Schedule,
    means: &Means<'_>,
    fire_at: DateTime<Utc>,
    last_fire_at: Option<DateTime<Utc>>,
) -> Result<Box<RawValue>, String> {
    let input = &schedule.target.input;
    if !template::has_templates(input.get()) {
        return Ok(input.clone());
    }
    let stamp = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let values = Values {
        fire_at: stamp(fire_at),
        fire_at_local: schedule.timing.cron.local(fire_at),
        last_fire_at: last_fire_at.map(stamp),
        last_result: means.last_result.and_then(|json| serde_json::from_slice(json).ok()),
        schedule_id: schedule.id.to_string(),
        schedule_name: schedule.name.clone(),
    };
    let mut whole: Value = serde_json::from_str(input.get()).map_err(|error| unfit(&error))?;
    template::render(&mut whole, &values);
    let rendered = to_raw_value(&whole).map_err(|error| unfit(&error))?;
    if rendered.get().len() > INPUT_MAX {
        return Err(format!(
            "its input with what the templates put in is over {INPUT_MAX} bytes"
        ));
    }
    Ok(rendered)
}

/// A run: what the agent is asked, and the definition, so that its worker reads no other row.
fn run(target: &Target, tenant_id: TenantId, means: &Means<'_>, asked: &RawValue) -> Result<Made, String> {
    let (definition, version) = answering(target.agent_id, tenant_id, means)?;
    let mut whole: BTreeMap<String, Box<RawValue>> =
        serde_json::from_str(asked.get()).map_err(|error| unfit(&error))?;
    let raw = |error: serde_json::Error| unfit(&error);
    whole.insert("agent".to_owned(), to_raw_value(definition).map_err(raw)?);
    whole.insert("agent_version".to_owned(), to_raw_value(&version).map_err(raw)?);
    Ok(Made {
        slot: definition.slot_class(),
        input: serde_json::to_string(&whole).map_err(raw)?,
        links: Links {
            agent: target.agent_id.zip(version),
            ..Links::default()
        },
        message: None,
    })
}

/// A turn: the message, and the agent of the conversation as it is now.
fn turn(tenant_id: TenantId, means: &Means<'_>, asked: &RawValue, now: DateTime<Utc>) -> Result<Made, String> {
    #[derive(serde::Deserialize)]
    struct Said {
        parts: Vec<Part>,
    }
    let talk = means.talk.filter(|talk| talk.tenant_id == tenant_id);
    let talk = talk.ok_or_else(|| "its conversation is deleted".to_owned())?;
    let (definition, version) = match &talk.agent {
        Some(definition) => (definition, None),
        None => answering(means.agent.map(|agent| agent.id), tenant_id, means)?,
    };
    let said: Said = serde_json::from_str(asked.get()).map_err(|error| unfit(&error))?;
    let message = Message::new(Role::User, said.parts, now);
    let input = serde_json::json!({ "message_id": message.id, "agent": definition, "agent_version": version });
    Ok(Made {
        slot: definition.slot_class(),
        input: input.to_string(),
        links: Links {
            agent: means.agent.map(|agent| agent.id).zip(version),
            conversation_id: Some(talk.id),
            ..Links::default()
        },
        message: Some(message),
    })
}

/// The saved agent that runs or answers.
fn answering<'a>(
    wanted: Option<AgentId>,
    tenant_id: TenantId,
    means: &Means<'a>,
) -> Result<(&'a AgentDefinition, Option<u32>), String> {
    let agent = means
        .agent
        .filter(|agent| agent.tenant_id == tenant_id && wanted == Some(agent.id));
    let agent = agent.ok_or_else(|| match wanted {
        Some(id) => format!("agent {id} is deleted or archived"),
        None => "the conversation's agent is deleted or archived".to_owned(),
    })?;
    Ok((&agent.definition, Some(agent.version)))
}

fn unfit(error: &serde_json::Error) -> String {
    format!("its input cannot be written: {error}")
}
