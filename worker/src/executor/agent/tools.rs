//! The native harness's tools, run in a sandbox that is taken when the first of them is called.

use std::sync::Arc;
use std::time::Duration;

use common::agent::AgentDefinition;
use common::job::{Failure, FailureCode};
use common::workspace::Owner;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use super::super::Context;
use super::super::exec::Broken;
use super::super::home::Home;
use super::super::keeper::Keeper;
use super::super::native::tool::definitions;
use super::super::native::{ToolCall, ToolInput, ToolOutcome, Tools, ToolsFailed, ToolsLost, TurnSink, edit};
use super::super::text::Decoder;
use super::super::way_out::{self, WayOut};
use crate::egress::Policy;
use crate::environment::Environment;
use crate::model::ToolDefinition;
use crate::sandbox::{self, Exit, Input, Oom, Output, RunSpec, Sandbox};

/// How long a tool may take when the model does not say.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long it may take whatever the model says.
const TIMEOUT_MAX: Duration = Duration::from_mins(5);

/// Bytes of each output stream that are kept; the loop cuts what the model sees further.
const KEEP_BYTES: u64 = 256 << 10;

/// Largest file that `read` and `edit` take, bytes.
const FILE_MAX: u64 = 1 << 20;

/// The tools of one turn.
pub(super) struct SandboxTools<'a> {
    context: &'a Context,
    definitions: Vec<ToolDefinition>,
    environment: Option<Arc<Environment>>,
    env: Vec<(String, String)>,
    owner: Option<Owner>,
    home: Option<Arc<Home>>,
    keeper: JoinSet<()>,
    way_out: Arc<WayOut>,
    policy: Policy,
    has_egress: bool,
}

impl<'a> SandboxTools<'a> {
    /// The tools of a turn whose files are `owner`'s.
    pub(super) fn new(context: &'a Context, agent: &AgentDefinition, owner: Option<Owner>) -> Result<Self, Failure> {
        let machine = &context.machine;
        let refuse = |message: String| Failure::new(FailureCode::InvalidInput, message);
        let definitions = definitions(&agent.tools).map_err(|error| refuse(error.to_string()))?;
        let environment = machine.environments.get(&agent.environment);
        let env = match environment {
            Some(environment) => {
                let own = environment.env.clone().into_iter();
                own.chain(way_out::variables(&machine.egress)).collect()
            }
            None if definitions.is_empty() => Vec::new(),
            None => return Err(refuse(format!("there is no environment {:?}", agent.environment))),
        };
        Ok(Self {
            context,
            definitions,
            environment: environment.cloned(),
            env,
            owner,
            home: None,
            keeper: JoinSet::new(),
            way_out: Arc::new(WayOut::new(context)),
            policy: environment.map_or_else(Policy::default, |environment| {
                Policy::new(&environment.egress, &agent.egress.allow)
            }),
            has_egress: !agent.egress.is_empty(),
        })
    }

    /// Leaves the sandbox, if there is one.
    ///
    /// # Errors
    /// When the workspace was not saved.
    pub(super) async fn end(mut self) -> Result<(), Failure> {
        self.keeper.shutdown().await;
        self.way_out.end().await;
        match self.home.take().and_then(Arc::into_inner) {
            Some(home) => home.leave().await,
            None => Ok(()),
        }
    }

    /// The turn's sandbox; the first call takes it, and from then on it lives as long as the lease.
    async fn home(&mut self) -> Result<Arc<Home>, ToolsLost> {
        if let Some(home) = &self.home {
            return Ok(Arc::clone(home));
        }
        let environment = self.environment.as_ref();
        let environment = environment.ok_or_else(|| ToolsLost("there is no such environment".into()))?;
        let mut keeper = Keeper::new(self.context.orders.clone());
        let home = Home::enter(self.context, &mut keeper, environment, self.owner).await;
        let home = Arc::new(home.map_err(|broken| match broken {
            Broken::Stopped(stopped) => ToolsLost(format!("the attempt was told to stop: {:?}", stopped.0).into()),
            Broken::GivenBack => ToolsLost("the engine that starts sandboxes does not answer".into()),
            Broken::Failed(failure) => ToolsLost(Box::new(ToolsFailed(failure))),
        })?);
        // From here on it is left in order, whatever fails.
        self.home = Some(Arc::clone(&home));
        if self.has_egress {
            let put = self.way_out.put_certificates(home.sandbox()).await;
            put.map_err(|error| ToolsLost(Box::new(error)))?;
        }
        let kept = Arc::clone(&home);
        let (way_out, policy) = (Arc::clone(&self.way_out), self.policy.clone());
        self.keeper.spawn(async move {
            // Ends with an order to stop, which the turn hears itself, or with the turn.
            let way_out = way_out.serve(kept.sandbox(), policy);
            let _stopped = keeper.keep(kept.sandbox(), way_out).await;
        });
        Ok(home)
    }

    async fn dispatch(&mut self, call: &ToolCall, sink: &dyn TurnSink) -> Result<ToolOutcome, ToolsLost> {
        let input = match ToolInput::parse(call) {
            Ok(input) => input,
            Err(error) => return Ok(ToolOutcome::error(error.to_string())),
        };
        let home = self.home().await?;
        let place = Place {
            sandbox: home.sandbox(),
            env: &self.env,
            call_id: &call.id,
            sink,
        };
        let done = match input {
            ToolInput::Bash { command, timeout } => place.show(&["bash", "-c", &command], timeout).await,
            ToolInput::Python { code } => place.show(&["python3", "-c", &code], None).await,
            ToolInput::Read { path } => place
                .read(&path)
                .await
                .map(|read| read.unwrap_or_else(|refused| refused)),
            ToolInput::Write { path, content } => place.write(&path, content).await,
            ToolInput::Edit { path, old, new } => place.edit(&path, &old, &new).await,
        };
        match done {
            Ok(outcome) => Ok(outcome),
            Err(error) if !error.is_transient() => Ok(ToolOutcome::error(error.to_string())),
            Err(error) => Err(ToolsLost(Box::new(error))),
        }
    }
}

impl Tools for SandboxTools<'_> {
    fn definitions(&self) -> Vec<ToolDefinition> {
        self.definitions.clone()
    }

    fn call<'a>(
        &'a mut self,
        call: &'a ToolCall,
        sink: &'a dyn TurnSink,
    ) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        self.dispatch(call, sink).boxed()
    }
}

/// Where one call runs.
struct Place<'a> {
    sandbox: &'a Sandbox,
    env: &'a [(String, String)],
    call_id: &'a str,
    sink: &'a dyn TurnSink,
}

impl Place<'_> {
    /// Runs a program and shows what it prints while it does.
    async fn show(&self, argv: &[&str], timeout: Option<Duration>) -> Result<ToolOutcome, sandbox::Error> {
        let timeout = timeout.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
        let (exit, mut text) = self.run(argv, Input::None, timeout, true).await?;
        if let Some(note) = note(&exit, timeout) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&note);
        }
        Ok(ToolOutcome {
            output: text,
            is_error: !exit.is_success(),
        })
    }

    async fn run(
        &self,
        argv: &[&str],
        stdin: Input,
        timeout: Duration,
        is_shown: bool,
    ) -> Result<(Exit, String), sandbox::Error> {
        let spec = RunSpec {
            env: self.env.to_vec(),
            stdin,
            timeout: Some(timeout),
            keep_bytes: Some(if is_shown { KEEP_BYTES } else { 2 * FILE_MAX }),
            ..RunSpec::new(argv.iter().copied())
        };
        let mut running = self.sandbox.run(spec).await?;
        let (mut decoder, mut text) = (Decoder::default(), String::new());
        while let Some(output) = running.next().await {
            let piece = match output {
                Output::Stdout(bytes) | Output::Stderr(bytes) => decoder.push(&bytes),
                Output::Cut { dropped, .. } => format!("{}\n[{dropped} bytes left out]\n", decoder.finish()),
            };
            if is_shown && !piece.is_empty() {
                self.sink.tool_output(self.call_id, &piece);
            }
            text.push_str(&piece);
        }
        text.push_str(&decoder.finish());
        Ok((running.wait().await?, text))
    }

    /// The content of a file, or what to tell the model instead.
    async fn read(&self, path: &str) -> Result<Result<ToolOutcome, ToolOutcome>, sandbox::Error> {
        // One more byte than may be shown tells that there is more.
        let limit = (FILE_MAX + 1).to_string();
        let (exit, text) = self
            .run(&["head", "-c", &limit, "--", path], Input::None, TIMEOUT, false)
            .await?;
        Ok(if !exit.is_success() {
            Err(ToolOutcome::error(text))
        } else if text.len() as u64 > FILE_MAX {
            Err(ToolOutcome::error(format!(
                "{path} is larger than {FILE_MAX} bytes: read a part of it with bash"
            )))
        } else {
            Ok(ToolOutcome::ok(text))
        })
    }

    async fn write(&self, path: &str, content: String) -> Result<ToolOutcome, sandbox::Error> {
        let script = "mkdir -p -- \"$(dirname -- \"$1\")\" && cat > \"$1\"";
        let bytes = content.len();
        let stdin = Input::Bytes(content.into_bytes().into());
        let (exit, text) = self
            .run(&["sh", "-c", script, "sh", path], stdin, TIMEOUT, false)
            .await?;
        Ok(if exit.is_success() {
            ToolOutcome::ok(format!("wrote {bytes} bytes to {path}"))
        } else {
            ToolOutcome::error(text)
        })
    }

    async fn edit(&self, path: &str, old: &str, new: &str) -> Result<ToolOutcome, sandbox::Error> {
        let before = match self.read(path).await? {
            Ok(read) => read.output,
            Err(refused) => return Ok(refused),
        };
        match edit::apply(&before, old, new) {
            Ok(after) => self.write(path, after).await,
            Err(error) => Ok(ToolOutcome::error(error.to_string())),
        }
    }
}

/// What the model must know besides the output.
fn note(exit: &Exit, timeout: Duration) -> Option<String> {
    Some(match (exit.code, exit.signal) {
        _ if exit.timed_out => format!("[killed: it ran longer than {} s]", timeout.as_secs()),
        _ if exit.output_limit => "[killed: it printed too much]".to_owned(),
        (Some(0), _) => return None,
        _ if exit.oom == Oom::Yes => "[killed: out of memory]".to_owned(),
        (Some(code), _) => format!("[exit code {code}]"),
        (None, Some(signal)) => format!("[killed by signal {signal}]"),
        (None, None) => "[ended in an unknown way]".to_owned(),
    })
}
