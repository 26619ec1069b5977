//! One turn under way: followed to its result, watched, stopped.

use std::time::Duration;

use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::super::exec::{Broken, outcome};
use super::super::super::text::Decoder;
use super::super::place::Place;
use super::super::transcript::Transcript;
use super::super::{Done, Used};
use super::prompt;
use super::steering::Steering;
use super::stream::Stream;
use crate::claude::{Process, Said, words};
use crate::events::Say;
use crate::sandbox::Exit;

/// How often it is looked for what was said to the turn.
const LOOK: Duration = Duration::from_secs(1);

/// How long it may take to end after its result; what it still runs then is killed with it.
const END_MAX: Duration = Duration::from_secs(2);

/// Characters of its last complaint that a failure repeats.
const COMPLAINT_MAX: usize = 300;

/// A turn under way.
pub(super) struct Turn<'p> {
    process: Process,
    place: &'p Place<'p>,
    steering: Steering<'p>,
    begun: Instant,
    complaints: Decoder,
    last_complaint: String,
    stream: Stream,
}

impl<'p> Turn<'p> {
    /// One that the process has been asked to take.
    pub(super) fn new(process: Process, place: &'p Place<'p>, steering: Steering<'p>) -> Self {
        Self {
            process,
            place,
            steering,
            begun: Instant::now(),
            complaints: Decoder::default(),
            last_complaint: String::new(),
            stream: Stream::default(),
        }
    }

    /// Follows it to its end; answers how it ended, and the process when that may take another turn: it rests then.
    pub(super) async fn follow(
        mut self,
        transcript: &mut Transcript<'_>,
        stop: &CancellationToken,
    ) -> Result<(Done, Option<Process>), Broken> {
        let timeout_ms = self.place.context.job.timeout_ms;
        let deadline = self.begun + Duration::from_millis(timeout_ms);
        let (mut heard, mut is_stopping) = (Instant::now(), false);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.has_ended(is_stopping).await? {
            let settings = &self.place.context.machine.claude_code;
            let silence = if self.stream.has_open_tools() {
                settings.tool_silence
            } else {
                settings.silence
            };
            tokio::select! {
                said = self.process.next() => match said {
                    Some(said) => self.take(said, transcript).await?,
                    None => break,
                },
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    self.process.say(words::interrupt()).await?;
                }
                _tick = look.tick(), if !is_stopping => {
                    self.listen().await?;
                    continue;
                }
                () = sleep_until(deadline) => return Err(late(timeout_ms).into()),
                () = sleep_until(heard + silence) => return Err(silent(silence).into()),
            }
            heard = Instant::now();
        }
        self.end(transcript).await
    }

    /// Whether it is over: it has answered, and nothing was said meanwhile that it has not heard.
    async fn has_ended(&mut self, is_stopping: bool) -> Result<bool, Broken> {
        if !self.stream.has_ended() {
            return Ok(false);
        }
        let is_answer = self.stream.ending().is_some_and(|ending| ending.failure().is_none());
        if is_stopping || !is_answer {
            return Ok(true);
        }
        self.listen().await?;
        if self.steering.is_waiting() {
            self.stream.go_on();
            return Ok(false);
        }
        Ok(true)
    }

    /// Hands on what was said since the last look.
    async fn listen(&mut self) -> Result<(), Broken> {
        for message in self.steering.listen().await {
            let id = message.id.to_string();
            self.process
                .say(words::user(&prompt::words(&message), Some(&id)))
                .await?;
        }
        Ok(())
    }

    async fn take(&mut self, said: Said, transcript: &mut Transcript<'_>) -> Result<(), Broken> {
        match said {
            Said::Line(line) => {
                if let Some(reply) = self.stream.line(&line, transcript) {
                    self.process.say(reply).await?;
                }
                for id in self.stream.begun() {
                    if let Some(message) = self.steering.begun(&id) {
                        transcript.heard(message);
                    }
                }
            }
            Said::Complaint(bytes) => {
                let text = self.complaints.push(&bytes);
                if let Some(line) = text.lines().rfind(|line| !line.trim().is_empty()) {
                    self.last_complaint = line.chars().take(COMPLAINT_MAX).collect();
                }
                if !text.is_empty() {
                    self.place.context.events.say(EventBody::Stderr { text });
                }
            }
        }
        Ok(())
    }

    /// The result is the end, whether the process knows it or not.
    async fn end(mut self, transcript: &mut Transcript<'_>) -> Result<(Done, Option<Process>), Broken> {
        let is_good = self.stream.ending().is_some_and(|ending| ending.failure().is_none());
        if is_good && self.place.may_keep() && !self.stream.has_open_tools() {
            match self.process.rest().await {
                // What it still ran is gone, and it would wonder: such a process ends with its turn.
                Ok(rested) if rested.others == 0 => {
                    let done = Done {
                        used: Used {
                            wall: self.begun.elapsed(),
                            cpu: Duration::from_micros(rested.cpu_us),
                            memory_peak_bytes: rested.memory_peak_bytes,
                            ..Used::default()
                        },
                        failure: None,
                        steps: self.stream.steps(),
                    };
                    return Ok((done, Some(self.process)));
                }
                Ok(rested) => {
                    let strays = rested.others;
                    tracing::info!(
                        strays,
                        "a process of Claude Code that left others behind ends with its turn"
                    );
                    self.process.wake().await?;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::info!(error, "a process of Claude Code does not stay for the next turn");
                }
            }
        }
        let Self {
            process, mut stream, ..
        } = self;
        let hear = |said| {
            if let Said::Line(line) = said {
                drop(stream.line(&line, transcript));
            }
        };
        let exit = process.end(END_MAX, hear).await?;
        let failure = match stream.ending() {
            Some(ending) => ending.failure(),
            None => Some(fallen(&exit, &self.last_complaint)),
        };
        let done = Done {
            used: Used {
                wall: self.begun.elapsed(),
                ..Used::from(&exit)
            },
            failure,
            steps: stream.steps(),
        };
        Ok((done, None))
    }
}

/// Why there is no result.
fn fallen(exit: &Exit, last_complaint: &str) -> Failure {
    let ended = || Failure::new(FailureCode::NonzeroExit, "it ended before its turn did");
    let failure = outcome::failure(exit, 0).unwrap_or_else(ended);
    if last_complaint.is_empty() {
        return failure;
    }
    Failure::new(failure.code, format!("{}: {last_complaint}", failure.message))
}

fn late(timeout_ms: u64) -> Failure {
    Failure::new(FailureCode::Timeout, format!("it took longer than {timeout_ms} ms"))
}

fn silent(silence: Duration) -> Failure {
    let silence = humantime::format_duration(silence);
    Failure::new(
        FailureCode::SandboxFailed,
        format!("Claude Code said nothing for {silence}"),
    )
}
