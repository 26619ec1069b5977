//! The `claude_code` harness: the real command line, headless, one turn at a time.
//!
//! It is driven over its standard input and output, a JSON object a line each way, and reaches a model through the gateway
//! alone. Its own transcript of a conversation lies in the workspace and is saved with it, so the next turn resumes it on
//! whatever worker; where there is none, the conversation so far goes in front of the prompt.
//!
//! # Not here
//! What its lines mean is [`stream`]; how it is called is [`invocation`].

mod invocation;
mod stream;

use std::time::Duration;

use common::agent::AgentDefinition;
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use common::message::Message;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::super::exec::{Broken, outcome};
use super::super::text::Decoder;
use super::Done;
use super::lines::Lines;
use super::place::Place;
use super::transcript::Transcript;
use crate::events::Say;
use crate::sandbox::{Channel, Exit, Input, Output, RunSpec, Running, Stdin};
use invocation::Session;
use stream::Stream;

/// How long it may be silent: a call of a model has begun to answer by then, or failed.
const SILENCE_MAX: Duration = Duration::from_mins(4);

/// And while a tool runs: the longest that the program gives one, and a little.
const TOOL_SILENCE_MAX: Duration = Duration::from_mins(11);

/// How long it may take to end after its result; what it still runs then is killed with it.
const END_MAX: Duration = Duration::from_secs(2);

/// Characters of its last complaint that a failure repeats.
const COMPLAINT_MAX: usize = 300;

/// How long a turn that is stopped may take to say so.
pub(super) const INTERRUPT_MAX: Duration = Duration::from_millis(500);

/// Takes one turn. `stop` asks it to end where it is.
pub(super) async fn run(
    place: &Place<'_>,
    (agent, history): (&AgentDefinition, &[Message]),
    transcript: &mut Transcript<'_>,
    stop: &CancellationToken,
) -> Result<Done, Broken> {
    let session = Session::find(place, history).await?;
    let model = place.doors.gateway.anthropic_model().ok_or_else(|| {
        let message = "claude_code needs a model whose provider speaks Anthropic Messages";
        Failure::new(FailureCode::InvalidInput, message)
    })?;
    let spec = RunSpec {
        env: invocation::env(place.env(), model),
        stdin: Input::Stream,
        timeout: Some(Duration::from_millis(place.context.job.timeout_ms)),
        keep_bytes: None,
        kill_bytes: None,
        ..RunSpec::new(invocation::argv(agent, &session, model))
    };
    let running = place.start(spec).await?;
    let stdin = running.stdin();
    stdin.write(stream::user(&session.prompt(history))).await?;
    let turn = Turn {
        running,
        stdin,
        lines: Lines::default(),
        complaints: Decoder::default(),
        last_complaint: String::new(),
        stream: Stream::default(),
    };
    turn.follow(place, transcript, stop).await
}

/// A turn under way.
struct Turn {
    running: Running,
    stdin: Stdin,
    lines: Lines,
    complaints: Decoder,
    last_complaint: String,
    stream: Stream,
}

impl Turn {
    async fn follow(
        mut self,
        place: &Place<'_>,
        transcript: &mut Transcript<'_>,
        stop: &CancellationToken,
    ) -> Result<Done, Broken> {
        let (mut heard, mut is_stopping) = (Instant::now(), false);
        while !self.stream.has_ended() {
            let silence = if self.stream.has_open_tools() {
                TOOL_SILENCE_MAX
            } else {
                SILENCE_MAX
            };
            tokio::select! {
                output = self.running.next() => match output {
                    Some(output) => self.take(output, place, transcript).await?,
                    None => break,
                },
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.stdin.write(stream::interrupt()).await?;
                }
                () = sleep_until(heard + silence) => return Err(silent(silence).into()),
            }
            heard = Instant::now();
        }
        self.end(place, transcript).await
    }

    async fn take(&mut self, output: Output, place: &Place<'_>, transcript: &mut Transcript<'_>) -> Result<(), Broken> {
        let mut replies = Vec::new();
        match output {
            Output::Stdout(bytes) => {
                let stream = &mut self.stream;
                self.lines
                    .push(&bytes, |line| replies.extend(stream.line(line, transcript)));
            }
            Output::Stderr(bytes) => {
                let text = self.complaints.push(&bytes);
                if let Some(line) = text.lines().rfind(|line| !line.trim().is_empty()) {
                    self.last_complaint = line.chars().take(COMPLAINT_MAX).collect();
                }
                if !text.is_empty() {
                    place.context.events.say(EventBody::Stderr { text });
                }
            }
            Output::Cut {
                channel: Channel::Stdout,
                ..
            } => self.lines.cut(),
            Output::Cut { .. } => {}
        }
        for reply in replies {
            self.stdin.write(reply).await?;
        }
        Ok(())
    }

    /// The result is the end, whether the process knows it or not.
    async fn end(mut self, place: &Place<'_>, transcript: &mut Transcript<'_>) -> Result<Done, Broken> {
        self.stdin.close().await?;
        let rest = async {
            while let Some(output) = self.running.next().await {
                if let Output::Stdout(bytes) = output {
                    let stream = &mut self.stream;
                    self.lines.push(&bytes, |line| drop(stream.line(line, transcript)));
                }
            }
        };
        if timeout(END_MAX, rest).await.is_err() {
            self.running.kill().await?;
        }
        let exit = self.running.wait().await?;
        let failure = match self.stream.ending() {
            Some(ending) => ending.failure(),
            None => Some(fallen(&exit, place.context.job.timeout_ms, &self.last_complaint)),
        };
        Ok(Done {
            exit,
            failure,
            steps: self.stream.steps(),
        })
    }
}

/// Why there is no result.
fn fallen(exit: &Exit, timeout_ms: u64, last_complaint: &str) -> Failure {
    let ended = || Failure::new(FailureCode::NonzeroExit, "it ended before its turn did");
    let failure = outcome::failure(exit, timeout_ms).unwrap_or_else(ended);
    if last_complaint.is_empty() {
        return failure;
    }
    Failure::new(failure.code, format!("{}: {last_complaint}", failure.message))
}

fn silent(silence: Duration) -> Failure {
    let minutes = silence.as_secs() / 60;
    Failure::new(
        FailureCode::SandboxFailed,
        format!("Claude Code said nothing for {minutes} minutes"),
    )
}
