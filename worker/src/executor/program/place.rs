//! Where an agent's program runs: a sandbox, what it finds there, and what it may reach.

use std::sync::{Mutex, PoisonError};

use common::agent::{AgentDefinition, Harness};
use common::job::{Failure, FailureCode};
use common::message::Message;
use serde_json::json;

use super::super::Context;
use super::super::exec::Broken;
use super::super::home::Home;
use super::super::keeper::Keeper;
use super::super::way_out;
use super::{Doors, Task};
use crate::claude::{Process, Recipe, SESSIONS_DIR};
use crate::egress::Policy;
use crate::environment::{self, Environment};
use crate::sandbox::{self, Input, PutFiles, RunSpec, Running, Sandbox};

/// Where a program finds the whole conversation and its instructions; beside the workspace, which is the user's.
const TURN_FILE: &str = "/tmp/.hothouse-turn.json";

/// Writes the turn, and the note where there is one.
const PUT: &str = r#"cat >"$1" || exit; [ -z "$2" ] || { mkdir -p "$3" && printf '%s\n' "$2" >"$3/$4"; }"#;

/// A program's place.
pub(super) struct Place<'a> {
    pub(super) context: &'a Context,
    pub(super) doors: &'a Doors,
    environment: &'a Environment,
    home: Home,
    /// How Claude Code is started for this agent, when it is its harness.
    recipe: Option<Recipe>,
    /// The process that was here before, and the one that stays for the next turn.
    before: Mutex<Option<Process>>,
    after: Mutex<Option<Process>>,
}

impl<'a> Place<'a> {
    /// Takes a sandbox of the agent's environment with the files of `owner`, alive from now on as long as the lease.
    pub(super) async fn take(
        context: &'a Context,
        keeper: &mut Keeper,
        doors: &'a Doors,
        (agent, task): (&AgentDefinition, &Task),
    ) -> Result<Self, Broken> {
        let name = match agent.harness {
            // The default has no command line; one that has it is named the same everywhere.
            Harness::ClaudeCode if agent.environment == environment::DEFAULT => environment::CLAUDE_CODE,
            _ => agent.environment.as_str(),
        };
        let Some(environment) = context.machine.environments.get(name) else {
            return Err(Failure::new(FailureCode::InvalidInput, format!("there is no environment {name:?}")).into());
        };
        let recipe = match agent.harness {
            Harness::ClaudeCode => Some(recipe(context, doors, environment, agent)?),
            _ => None,
        };
        // What was said before is in no spare.
        let spare = recipe
            .as_ref()
            .filter(|_| task.history.len() < 2 && context.job.attempt < 2);
        let mut home = Home::enter(context, keeper, (environment, spare), task.owner).await?;
        if let (Some(recipe), Some(pool)) = (&recipe, &context.machine.pool) {
            pool.remember(&environment.name, recipe);
        }
        let place = Self {
            context,
            doors,
            environment,
            before: Mutex::new(home.take_resident().filter(|_| recipe.is_some())),
            after: Mutex::default(),
            home,
            recipe,
        };
        match keeper.keep(place.sandbox(), place.furnish(agent, task)).await {
            Ok(Ok(())) => Ok(place),
            Ok(Err(error)) => {
                place.home.give_up();
                Err(error.into())
            }
            Err(stopped) => {
                place.home.give_up();
                Err(Broken::Stopped(stopped))
            }
        }
    }

    async fn furnish(&self, agent: &AgentDefinition, task: &Task) -> Result<(), sandbox::Error> {
        if let Some(archive) = &task.given {
            self.sandbox().put_files(archive.clone(), PutFiles::default()).await?;
        }
        if !agent.egress.is_empty() {
            self.doors.way_out.put_certificates(self.sandbox()).await?;
        }
        Ok(())
    }

    /// The sandbox.
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.home.sandbox()
    }

    /// How Claude Code is started here.
    pub(super) fn recipe(&self) -> Result<&Recipe, Broken> {
        let none = || Failure::new(FailureCode::Internal, "the agent is none of Claude Code's").into();
        self.recipe.as_ref().ok_or_else(none)
    }

    /// Takes the process that was here before.
    pub(super) fn take_resident(&self) -> Option<Process> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Leaves a process for the next turn: it rests, and nothing else runs here from then on.
    pub(super) fn put_resident(&self, resident: Process) {
        *self.after.lock().unwrap_or_else(PoisonError::into_inner) = Some(resident);
    }

    /// Whether a process may stay for the next turn.
    pub(super) fn may_keep(&self) -> bool {
        self.home.may_keep() && !self.environment.warm.keep.is_zero()
    }

    /// What the program may connect to.
    pub(super) fn policy(&self, agent: &AgentDefinition) -> Policy {
        Policy::new(&self.environment.egress, &agent.egress.allow)
    }

    /// The variables that a program starts with.
    pub(super) fn env(&self, agent: &AgentDefinition) -> Vec<(String, String)> {
        let mut env = self.environment.env.clone();
        env.extend(way_out::variables(
            &self.context.machine.egress,
            !agent.egress.is_empty(),
        ));
        env.extend(self.doors.gateway.variables());
        let job = &self.context.job;
        env.insert("HOTHOUSE_JOB_ID".to_owned(), job.id.to_string());
        env.insert("HOTHOUSE_TURN".to_owned(), TURN_FILE.to_owned());
        if let Some(id) = job.conversation_id {
            env.insert("HOTHOUSE_CONVERSATION_ID".to_owned(), id.to_string());
        }
        env.into_iter().collect()
    }

    /// Puts the instructions and the conversation so far where [`Self::env`] says. `session` is a session of Claude Code's
    /// that has another id than the conversation: it is noted in the workspace.
    pub(super) async fn put_turn(
        &self,
        agent: &AgentDefinition,
        history: &[Message],
        session: Option<&str>,
    ) -> Result<(), Broken> {
        let job = &self.context.job;
        let turn = json!({"job_id": job.id, "conversation_id": job.conversation_id, "instructions": agent.instructions,
            "models": agent.models, "messages": history});
        let spec = RunSpec {
            stdin: Input::Bytes(turn.to_string().into_bytes().into()),
            ..RunSpec::new([
                "/bin/sh",
                "-c",
                PUT,
                "sh",
                TURN_FILE,
                session.unwrap_or_default(),
                SESSIONS_DIR,
                &self.name(),
            ])
        };
        let exit = self.sandbox().run(spec).await?.wait().await?;
        if exit.is_success() {
            return Ok(());
        }
        let message = "the conversation does not fit into the sandbox's /tmp";
        Err(Failure::new(FailureCode::DiskFull, message).into())
    }

    /// The name by which the conversation, or the run, is known here.
    pub(super) fn name(&self) -> String {
        let job = &self.context.job;
        job.conversation_id
            .map_or_else(|| job.id.to_string(), |id| id.to_string())
    }

    /// Starts a program of the agent.
    pub(super) async fn start(&self, spec: RunSpec) -> Result<Running, Broken> {
        let running = self.sandbox().run(spec).await.map_err(not_started)?;
        self.context.events.say_running(running.began_ago());
        Ok(running)
    }

    /// Leaves the sandbox.
    ///
    /// # Errors
    /// When the workspace was not saved.
    pub(super) async fn leave(mut self) -> Result<(), Failure> {
        let after = self.after.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(resident) = after {
            self.home.put_resident(resident);
        }
        Box::pin(self.home.leave()).await
    }
}

/// What it means that a program is not there, or is asked for with more than there is room for.
pub(super) fn not_started(error: sandbox::Error) -> Broken {
    match error {
        sandbox::Error::Refused(_) | sandbox::Error::TooLarge { .. } if !error.is_transient() => {
            let message = format!("the program does not start: {error}");
            Failure::new(FailureCode::InvalidInput, message).into()
        }
        error => error.into(),
    }
}

/// How the command line is started for this agent. Nothing in it is of this job: it may be started before.
fn recipe(
    context: &Context,
    doors: &Doors,
    environment: &Environment,
    agent: &AgentDefinition,
) -> Result<Recipe, Failure> {
    let model = doors.gateway.anthropic_model().ok_or_else(|| {
        let message = "claude_code needs a model whose provider speaks Anthropic Messages";
        Failure::new(FailureCode::InvalidInput, message)
    })?;
    let mut env = environment.env.clone();
    env.extend(way_out::variables(&context.machine.egress, !agent.egress.is_empty()));
    env.insert("HOTHOUSE_TURN".to_owned(), TURN_FILE.to_owned());
    Ok(Recipe::new(agent, model, env.into_iter().collect()))
}
