//! The inputs of the kinds: read, checked, and written down as a worker needs them.

use std::time::Duration;

use common::agent::{AgentDefinition, AgentStatus, WorkspaceChoice};
use common::ids::AgentId;
use common::job::Kind;
use common::job::exec::{ExecInput, InputFile};
use common::job::invalid::InvalidField;
use common::job::noop::NoopInput;
use common::job::spec::SlotClass;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::group;
use super::request::{Submittable, below, slot_of};
use crate::auth::Caller;
use crate::config::Submit;
use crate::extract::from_json;
use crate::problem::{Code, FieldError, Problem};
use crate::state::App;

/// How long a job may run that says nothing about it.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long a group waits for its jobs that says nothing about it.
const GROUP_TIMEOUT: Duration = Duration::from_hours(24);

/// A checked input.
#[derive(Clone, Debug)]
pub struct Runnable {
    /// JSON for the worker.
    pub input: Vec<u8>,
    /// The slot that it starts in.
    pub slot: SlotClass,
    /// The saved agent that it runs, and its version.
    pub agent: Option<(AgentId, u32)>,
    /// Its own timeout, where it is an agent's.
    pub timeout: Option<Duration>,
    /// The concurrency key of which one may run at a time, where it uses what others must not change meanwhile.
    pub alone: Option<String>,
}

/// What a run of an agent is given.
#[derive(Clone, Copy, Debug)]
pub struct AgentRun<'a> {
    /// The prompt.
    pub text: &'a str,
    /// Files of its sandbox.
    pub files: &'a [InputFile],
    /// On whose files it works.
    pub workspace: WorkspaceChoice,
}

/// Which agent runs: a saved one, or one that is defined on the spot.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct AgentRef {
    /// A saved agent.
    pub agent_id: Option<AgentIdText>,
    /// A definition that is not saved.
    pub agent: Option<AgentDefinition>,
}

/// The text of an agent's id; what is no id names no agent.
pub(crate) type AgentIdText = String;

/// An agent that may run.
#[derive(Clone, Debug)]
pub struct ResolvedAgent {
    /// What it is.
    pub definition: AgentDefinition,
    /// Which saved agent it is, and its version.
    pub link: Option<(AgentId, u32)>,
}

/// The input of an `agent_run` as it is submitted.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AgentRunInput {
    input: Option<String>,
    files: Option<Vec<InputFile>>,
    agent_id: Option<AgentIdText>,
    agent: Option<AgentDefinition>,
    workspace: WorkspaceChoice,
}

/// The input of an `agent_run` as its worker reads it.
#[derive(Serialize)]
struct StoredRun<'a> {
    input: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    files: &'a [InputFile],
    agent: &'a AgentDefinition,
    agent_version: Option<u32>,
    workspace: WorkspaceChoice,
}

impl Runnable {
    /// Reads the input of a kind, which stands at `base` in the body.
    ///
    /// # Errors
    /// 413 when it is too long, 400 and 422 with pointers, 404 for an agent that is not the caller's, 503.
    pub async fn read(app: &App, caller: &Caller, kind: Submittable, json: &str, base: &str) -> Result<Self, Problem> {
        fits(app, json, base)?;
        match kind {
            Submittable::Noop => {
                if json != "{}" {
                    // Read as a whole first: what a noop ignores must be JSON that a reader of the row can read.
                    let _whole: serde_json::Map<String, serde_json::Value> = from_json(json, base)?;
                    let input: NoopInput = from_json(json, base)?;
                    if input.duration > app.config().submit.timeout_max {
                        return Err(Problem::field(format!("{base}/duration"), "is longer than any timeout"));
                    }
                }
                Ok(Self {
                    input: json.as_bytes().to_vec(),
                    slot: slot_of(kind),
                    agent: None,
                    timeout: None,
                    alone: None,
                })
            }
            Submittable::Exec => {
                let input: ExecInput = from_json(json, base)?;
                refuse(base, input.validate())?;
                Ok(Self {
                    input: json.as_bytes().to_vec(),
                    slot: slot_of(kind),
                    agent: None,
                    timeout: None,
                    alone: None,
                })
            }
            Submittable::AgentRun => {
                let run: AgentRunInput = from_json(json, base)?;
                let agent = AgentRef {
                    agent_id: run.agent_id,
                    agent: run.agent,
                };
                let agent = agent.resolve(app, caller, base).await?;
                let text = run
                    .input
                    .ok_or_else(|| Problem::field(format!("{base}/input"), "is required"))?;
                let run = AgentRun {
                    text: &text,
                    files: &run.files.unwrap_or_default(),
                    workspace: run.workspace,
                };
                Self::agent_run(&agent, &run, base)
            }
            // Boxed: it prepares jobs, which reads inputs.
            Submittable::Group => Box::pin(group::read(app, caller, json, base)).await,
        }
    }

    /// The input of one run of an agent.
    ///
    /// # Errors
    /// 422 for files that cannot be used.
    pub fn agent_run(agent: &ResolvedAgent, run: &AgentRun<'_>, base: &str) -> Result<Self, Problem> {
        let AgentRun { text, files, workspace } = *run;
        let alone = match (workspace, agent.link) {
            (WorkspaceChoice::None, _) => None,
            (WorkspaceChoice::Agent, Some((id, _))) => Some(format!("workspace:{id}")),
            (WorkspaceChoice::Agent, None) => {
                return Err(Problem::field(format!("{base}/workspace"), "is a saved agent's alone"));
            }
        };
        let with_files = ExecInput {
            command: Some(vec!["true".to_owned()]),
            files: files.to_vec(),
            ..ExecInput::default()
        };
        refuse(base, with_files.validate())?;
        let stored = StoredRun {
            input: text,
            files,
            agent: &agent.definition,
            agent_version: agent.link.map(|(_, version)| version),
            workspace,
        };
        Ok(Self {
            input: serde_json::to_vec(&stored).unwrap_or_default(),
            slot: agent.definition.slot_class(),
            agent: agent.link,
            timeout: Some(agent.definition.timeout),
            alone,
        })
    }

    /// The default and the longest timeout of a job that runs this.
    pub(crate) fn timeouts(&self, kind: Kind, submit: &Submit) -> (Duration, Duration) {
        match self.timeout {
            _ if kind == Kind::Group => (GROUP_TIMEOUT.min(submit.group_timeout_max), submit.group_timeout_max),
            Some(timeout) => (timeout.min(submit.agent_timeout_max), submit.agent_timeout_max),
            None => (TIMEOUT.min(submit.timeout_max), submit.timeout_max),
        }
    }
}

/// Refuses an input that is too long.
pub(crate) fn fits(app: &App, json: &str, base: &str) -> Result<(), Problem> {
    let max = app.config().http.input_max;
    if json.len() <= max {
        return Ok(());
    }
    let detail = format!("is {} bytes long, at most {max} are allowed", json.len());
    Err(Problem::new(Code::TooLarge, format!("{base} {detail}")).with_errors(vec![FieldError::body(base, detail)]))
}

/// Refuses what is wrong with something that stands at `base`.
pub(crate) fn refuse(base: &str, faults: Vec<InvalidField>) -> Result<(), Problem> {
    if faults.is_empty() {
        return Ok(());
    }
    Err(Problem::invalid(below(
        base,
        faults.into_iter().map(FieldError::from).collect(),
    )))
}

impl AgentRef {
    /// The agent, if the caller may run it.
    ///
    /// # Errors
    /// 422 when there is not exactly one or it is faulty, 404 when it is not the caller's, 409 when it is archived.
    pub async fn resolve(self, app: &App, caller: &Caller, base: &str) -> Result<ResolvedAgent, Problem> {
        match (self.agent_id, self.agent) {
            (Some(_), Some(_)) => Err(Problem::field(
                format!("{base}/agent"),
                "cannot be combined with agent_id",
            )),
            (None, None) => Err(Problem::field(format!("{base}/agent_id"), "is required, or agent")),
            (None, Some(definition)) => {
                refuse(&format!("{base}/agent"), definition.validate(false))?;
                let notes = super::fields::metadata_faults(&definition.metadata);
                if !notes.is_empty() {
                    return Err(Problem::invalid(below(&format!("{base}/agent"), notes)));
                }
                Ok(ResolvedAgent { definition, link: None })
            }
            (Some(id), None) => {
                let absent = || Problem::not_found("agent");
                let id: AgentId = id.parse().map_err(|_garbage| absent())?;
                ResolvedAgent::saved(app, caller, id).await
            }
        }
    }
}

impl ResolvedAgent {
    /// A saved agent of the caller.
    ///
    /// # Errors
    /// 404 when there is none, 409 when it is archived, 503.
    pub async fn saved(app: &App, caller: &Caller, id: AgentId) -> Result<Self, Problem> {
        let saved = app
            .store()
            .agent(caller.tenant_id(), id)
            .await?
            .ok_or_else(|| Problem::not_found("agent"))?;
        if saved.definition.status == AgentStatus::Archived {
            return Err(Problem::new(Code::Conflict, "the agent is archived"));
        }
        Ok(Self {
            definition: saved.definition,
            link: Some((id, saved.version)),
        })
    }
}
