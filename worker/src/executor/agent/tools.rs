//! The native harness's tools, run in a sandbox that is taken when the first of them is called, or a little before: while
//! the model still writes the call.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use common::agent::AgentDefinition;
use common::job::{Failure, FailureCode};
use common::workspace::Owner;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::super::Context;
use super::super::exec::Broken;
use super::super::home::Home;
use super::super::keeper::Keeper;
use super::super::native::tool::definitions;
use super::super::native::{ToolCall, ToolInput, ToolOutcome, Tools, ToolsFailed, ToolsLost, TurnSink};
use super::super::way_out::{self, WayOut};
use super::files::Given;
use super::place::Place;
use super::python::Python;
use crate::egress::Policy;
use crate::environment::Environment;
use crate::model::ToolDefinition;
use crate::sandbox::{self, PutFiles, Sandbox};

/// The tools of one turn.
pub(super) struct SandboxTools {
    definitions: Vec<ToolDefinition>,
    place: Arc<Sandboxed>,
    /// The taking of a sandbox ahead of the first call.
    ahead: Mutex<JoinSet<()>>,
}

/// The sandbox of a turn, taken when it is needed.
struct Sandboxed {
    context: Arc<Context>,
    environment: Option<Arc<Environment>>,
    env: Vec<(String, String)>,
    owner: Option<Owner>,
    home: OnceCell<Arc<Home>>,
    /// Files that are put into it, a tar stream.
    given: Option<Bytes>,
    /// Set once those files are in it, and the operator's certificates where it has a way out.
    is_furnished: OnceCell<()>,
    keeper: Mutex<JoinSet<()>>,
    python: Python,
    /// One at a time: each reads a file and writes it.
    writing: tokio::sync::Mutex<()>,
    way_out: Arc<WayOut>,
    policy: Policy,
    has_egress: bool,
}

impl SandboxTools {
    /// The tools of a turn whose files are `owner`'s, and those that it was given.
    pub(super) fn new(
        context: &Arc<Context>,
        agent: &AgentDefinition,
        owner: Option<Owner>,
        given: &Given,
    ) -> Result<Self, Failure> {
        let machine = &context.machine;
        let refuse = |message: String| Failure::new(FailureCode::InvalidInput, message);
        let definitions = definitions(&agent.tools).map_err(|error| refuse(error.to_string()))?;
        let environment = machine.environments.get(&agent.environment);
        let has_egress = !agent.egress.is_empty();
        let env = match environment {
            Some(environment) => {
                let own = environment.env.clone().into_iter();
                own.chain(way_out::variables(&machine.egress, has_egress)).collect()
            }
            None if definitions.is_empty() => Vec::new(),
            None => return Err(refuse(format!("there is no environment {:?}", agent.environment))),
        };
        let given = given
            .archive()
            .map_err(|error| refuse(format!("the files cannot be packed: {error}")))?;
        let place = Sandboxed {
            context: Arc::clone(context),
            environment: environment.cloned(),
            env,
            owner,
            home: OnceCell::new(),
            given: given.map(Bytes::from),
            is_furnished: OnceCell::new(),
            keeper: Mutex::default(),
            python: Python::default(),
            writing: tokio::sync::Mutex::default(),
            way_out: Arc::new(WayOut::new(context)),
            policy: environment.map_or_else(Policy::default, |environment| {
                Policy::new(&environment.egress, &agent.egress.allow)
            }),
            has_egress,
        };
        Ok(Self {
            definitions,
            place: Arc::new(place),
            ahead: Mutex::default(),
        })
    }

    /// Leaves the sandbox, if there is one.
    ///
    /// # Errors
    /// When the workspace was not saved.
    pub(super) async fn end(self) -> Result<(), Failure> {
        let mut ahead = self.ahead.into_inner().unwrap_or_else(PoisonError::into_inner);
        ahead.shutdown().await;
        match Arc::into_inner(self.place) {
            Some(place) => Box::pin(place.end()).await,
            None => Ok(()),
        }
    }
}

impl Sandboxed {
    async fn end(self) -> Result<(), Failure> {
        self.python.end().await;
        let mut keeper = self.keeper.into_inner().unwrap_or_else(PoisonError::into_inner);
        keeper.shutdown().await;
        self.way_out.end().await;
        match self.home.into_inner().and_then(Arc::into_inner) {
            Some(home) => Box::pin(home.leave()).await,
            None => Ok(()),
        }
    }

    /// The turn's sandbox; the first call takes it, and from then on it lives as long as the lease.
    async fn home(&self) -> Result<&Arc<Home>, ToolsLost> {
        let home = self.home.get_or_try_init(|| self.enter()).await?;
        let furnished = self.is_furnished.get_or_try_init(|| self.furnish(home.sandbox()));
        furnished.await.map_err(|error| ToolsLost(Box::new(error)))?;
        Ok(home)
    }

    async fn furnish(&self, sandbox: &Sandbox) -> Result<(), sandbox::Error> {
        if let Some(archive) = &self.given {
            sandbox.put_files(archive.clone(), PutFiles::default()).await?;
        }
        if self.has_egress {
            self.way_out.put_certificates(sandbox).await?;
        }
        Ok(())
    }

    async fn enter(&self) -> Result<Arc<Home>, ToolsLost> {
        let environment = self.environment.as_ref();
        let environment = environment.ok_or_else(|| ToolsLost("there is no such environment".into()))?;
        let mut keeper = Keeper::new(self.context.orders.clone());
        let home = Home::enter(&self.context, &mut keeper, (environment, None), self.owner).await;
        let home = Arc::new(home.map_err(|broken| match broken {
            Broken::Stopped(stopped) => ToolsLost(format!("the attempt was told to stop: {:?}", stopped.0).into()),
            Broken::GivenBack => ToolsLost("the engine that starts sandboxes does not answer".into()),
            Broken::Failed(failure) => ToolsLost(Box::new(ToolsFailed(failure))),
        })?);
        let kept = Arc::clone(&home);
        let (way_out, policy) = (Arc::clone(&self.way_out), self.policy.clone());
        let mut tasks = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(async move {
            // Ends with an order to stop, which the turn hears itself, or with the turn.
            let way_out = way_out.serve(kept.sandbox(), policy);
            let _stopped = keeper.keep(kept.sandbox(), way_out).await;
        });
        Ok(home)
    }

    async fn dispatch(&self, call: &ToolCall, sink: &dyn TurnSink) -> Result<ToolOutcome, ToolsLost> {
        let input = match ToolInput::parse(call) {
            Ok(input) => input,
            Err(error) => return Ok(ToolOutcome::error(error.to_string())),
        };
        let home = self.home().await?;
        let place = Place {
            sandbox: home.sandbox(),
            env: &self.env,
            python: &self.python,
            call_id: &call.id,
            sink,
        };
        let is_change = matches!(input, ToolInput::Write { .. } | ToolInput::Edit { .. });
        let _alone = if is_change {
            Some(self.writing.lock().await)
        } else {
            None
        };
        match place.run_call(input).await {
            Ok(outcome) => Ok(outcome),
            Err(error) if !error.is_transient() => Ok(ToolOutcome::error(error.to_string())),
            Err(error) => Err(ToolsLost(Box::new(error))),
        }
    }
}

impl Tools for SandboxTools {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.definitions.clone()
    }

    fn prepare(&self, name: &str) {
        if !self.definitions.iter().any(|tool| tool.name == name) || self.place.home.initialized() {
            return;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.is_empty() {
            let place = Arc::clone(&self.place);
            ahead.spawn(async move {
                // What goes wrong is found by the call itself, which tries again.
                drop(place.home().await.map(Arc::clone));
            });
        }
    }

    fn call<'a>(&'a self, call: &'a ToolCall, sink: &'a dyn TurnSink) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        self.place.dispatch(call, sink).boxed()
    }
}
