//! Where an agent's program runs: a sandbox, what it finds there, and what it may reach.

use common::agent::{AgentDefinition, Harness};
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use common::message::Message;
use common::workspace::Owner;
use serde_json::json;

use super::super::Context;
use super::super::exec::Broken;
use super::super::home::Home;
use super::super::keeper::Keeper;
use super::super::way_out;
use super::Doors;
use crate::egress::Policy;
use crate::environment::{self, Environment};
use crate::events::Say;
use crate::sandbox::{self, Input, RunSpec, Running, Sandbox};

/// Where a program finds the whole conversation and its instructions; beside the workspace, which is the user's.
const TURN_FILE: &str = "/tmp/.hothouse-turn.json";

/// A program's place.
pub(super) struct Place<'a> {
    pub(super) context: &'a Context,
    pub(super) doors: &'a Doors,
    environment: &'a Environment,
    home: Home,
}

impl<'a> Place<'a> {
    /// Takes a sandbox of the agent's environment with the files of `owner`, alive from now on as long as the lease.
    pub(super) async fn take(
        context: &'a Context,
        keeper: &mut Keeper,
        doors: &'a Doors,
        agent: &AgentDefinition,
        owner: Option<Owner>,
    ) -> Result<Self, Broken> {
        let name = match agent.harness {
            // The default has no command line; one that has it is named the same everywhere.
            Harness::ClaudeCode if agent.environment == environment::DEFAULT => environment::CLAUDE_CODE,
            _ => agent.environment.as_str(),
        };
        let Some(environment) = context.machine.environments.get(name) else {
            return Err(Failure::new(FailureCode::InvalidInput, format!("there is no environment {name:?}")).into());
        };
        let home = Home::enter(context, keeper, environment, owner).await?;
        let place = Self {
            context,
            doors,
            environment,
            home,
        };
        if !agent.egress.is_empty()
            && let Err(error) = doors.way_out.put_certificates(place.sandbox()).await
        {
            place.home.give_up();
            return Err(error.into());
        }
        Ok(place)
    }

    /// The sandbox.
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.home.sandbox()
    }

    /// What the program may connect to.
    pub(super) fn policy(&self, agent: &AgentDefinition) -> Policy {
        Policy::new(&self.environment.egress, &agent.egress.allow)
    }

    /// The variables that a program starts with.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let mut env = self.environment.env.clone();
        env.extend(way_out::variables(&self.context.machine.egress));
        env.extend(self.doors.gateway.variables());
        let job = &self.context.job;
        env.insert("HOTHOUSE_JOB_ID".to_owned(), job.id.to_string());
        env.insert("HOTHOUSE_TURN".to_owned(), TURN_FILE.to_owned());
        if let Some(id) = job.conversation_id {
            env.insert("HOTHOUSE_CONVERSATION_ID".to_owned(), id.to_string());
        }
        env.into_iter().collect()
    }

    /// Puts the instructions and the conversation so far where [`Self::env`] says.
    pub(super) async fn put_turn(&self, agent: &AgentDefinition, history: &[Message]) -> Result<(), Broken> {
        let turn = json!({"instructions": agent.instructions, "models": agent.models, "messages": history});
        let spec = RunSpec {
            stdin: Input::Bytes(turn.to_string().into_bytes().into()),
            ..RunSpec::new(["/bin/sh", "-c", "cat >\"$1\"", "sh", TURN_FILE])
        };
        let exit = self.sandbox().run(spec).await?.wait().await?;
        if exit.is_success() {
            return Ok(());
        }
        let message = "the conversation does not fit into the sandbox's /tmp";
        Err(Failure::new(FailureCode::DiskFull, message).into())
    }

    /// Starts a program of the agent.
    pub(super) async fn start(&self, spec: RunSpec) -> Result<Running, Broken> {
        let running = match self.sandbox().run(spec).await {
            Ok(running) => running,
            Err(error @ (sandbox::Error::Refused(_) | sandbox::Error::TooLarge { .. })) if !error.is_transient() => {
                let message = format!("the program does not start: {error}");
                return Err(Failure::new(FailureCode::InvalidInput, message).into());
            }
            Err(error) => return Err(error.into()),
        };
        self.context.events.say(EventBody::Status {
            phase: "running".to_owned(),
            detail: None,
        });
        Ok(running)
    }

    /// Leaves the sandbox.
    ///
    /// # Errors
    /// When the workspace was not saved.
    pub(super) async fn leave(self) -> Result<(), Failure> {
        Box::pin(self.home.leave()).await
    }
}
