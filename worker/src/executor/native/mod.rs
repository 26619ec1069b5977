//! The native harness: our own tool loop.
//!
//! A turn asks the model, runs the tools that it calls, gives it their results and asks again, until it answers without
//! a call. The loop knows neither sandbox nor queue: it reaches tools through [`Tools`] and says what happens to a
//! [`TurnSink`], so it runs the same in a test and in a worker.
//!
//! # Invariants
//! - Whatever stops a turn, the history with the turn's messages appended is valid: every call that is in it has its
//!   result, which says what happened.
//! - What was streamed to a person and then cancelled is kept; what was streamed and then failed is not, because
//!   another attempt says it again.
//! - A tool that fails is the model's affair and part of the conversation; a lost sandbox is the attempt's failure.
//!
//! # Not here
//! The tools themselves are the caller's; what one failed call of a model means is [`crate::model::open()`].

mod ask;
mod cut;
pub mod edit;
mod sink;
pub mod tool;

use std::collections::BTreeMap;
use std::time::Duration;

use common::clock::Clock;
use common::ids::JobId;
use common::job::failure::{Failure, FailureCode};
use common::message::{Message, Part, Role, Usage, repair};
use tokio_util::sync::CancellationToken;

pub use cut::cut;
pub use sink::{CallUsage, EventSink, TurnSink};
pub use tool::{NoTools, ToolCall, ToolInput, ToolOutcome, Tools, ToolsFailed, ToolsLost};

use crate::model::answer::Finished;
use crate::model::{Error, ModelName, ModelRequest, Providers, RetryPolicy, StopReason};

/// One turn to take.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The agent's instructions.
    pub system: String,
    /// The conversation so far, ending with the user. It need not be valid: it is repaired before each call.
    pub history: Vec<Message>,
    /// The agent's models, the preferred first.
    pub models: Vec<ModelName>,
    /// The job whose turn it is; it marks the messages.
    pub job_id: Option<JobId>,
    /// Randomness, 0 to 1.
    pub temperature: Option<f32>,
    /// Where it ends at the latest.
    pub limits: Limits,
}

/// Where a turn ends at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most calls of the model, at least 1.
    pub max_steps: u32,
    /// Most tokens of each answer.
    pub max_output_tokens: u32,
    /// Most bytes of each tool's output that the model sees; the middle of more is left out.
    pub tool_output_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 50,
            max_output_tokens: 8_192,
            tool_output_bytes_max: 32 * 1024,
        }
    }
}

/// What a turn is taken with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who runs the models.
    pub providers: &'a Providers,
    /// How a call is tried again before its first token.
    pub retry: &'a RetryPolicy,
    /// What time it is.
    pub clock: &'a Clock,
    /// Who is told what happens.
    pub sink: &'a dyn TurnSink,
    /// Ends the turn at any point.
    pub cancel: &'a CancellationToken,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("providers", self.providers)
            .finish_non_exhaustive()
    }
}

/// How a turn ended. Its messages are to be appended to the conversation whatever `stop` says.
#[derive(Debug)]
pub struct TurnEnd {
    /// What was said and done, valid behind the history.
    pub messages: Vec<Message>,
    /// What all calls of the model used, failed ones included.
    pub usage: Usage,
    /// The text of the last answer; empty when there is none.
    pub text: String,
    /// Calls of the model that answered.
    pub steps: u32,
    /// Why it ended.
    pub stop: Stop,
}

/// Why a turn ended.
#[derive(Debug)]
pub enum Stop {
    /// The model answered without another call.
    Answered(StopReason),
    /// The last step was taken and the model wanted more.
    MaxSteps,
    /// Somebody asked for it.
    Cancelled,
    /// The model could not be asked, or its answer broke off.
    Model(Error),
    /// The tools are gone.
    Tools(ToolsLost),
}

impl Stop {
    /// The failure that it means for the job; none when it answered or was cancelled.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Answered(_) | Self::Cancelled => None,
            Self::MaxSteps => Some(Failure::new(
                FailureCode::MaxSteps,
                "the agent took its last step without an answer",
            )),
            Self::Model(error) => Some(error.failure()),
            Self::Tools(lost) => Some(lost.failure()),
        }
    }

    /// How long the model's provider wants to be left alone before another attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Model(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// Takes a turn. Never fails by itself: how it went is in [`TurnEnd::stop`].
pub async fn run(turn: Turn, context: Context<'_>, tools: &mut dyn Tools) -> TurnEnd {
    let mut run = Run {
        turn,
        context,
        messages: Vec::new(),
        usage: Usage::default(),
        calls: 0,
        steps: 0,
    };
    let stop = loop {
        match run.step(tools).await {
            Some(stop) => break stop,
            None => run.steps += 1,
        }
    };
    let text = run
        .messages
        .iter()
        .rev()
        .find(|message| message.role == Role::Assistant)
        .map(Message::text);
    TurnEnd {
        messages: run.messages,
        usage: run.usage,
        text: text.unwrap_or_default(),
        steps: run.steps,
        stop,
    }
}

/// A turn under way.
struct Run<'a> {
    turn: Turn,
    context: Context<'a>,
    messages: Vec<Message>,
    usage: Usage,
    calls: u32,
    steps: u32,
}

impl Run<'_> {
    /// Asks once and runs what is called. None when there is more to do.
    async fn step(&mut self, tools: &mut dyn Tools) -> Option<Stop> {
        let request = match self.request(tools) {
            Ok(request) => request,
            Err(error) => return Some(Stop::Model(error)),
        };
        let (finished, usage) = match self.ask(&request, tools).await {
            Ok(answered) => answered,
            Err(ask::Broken {
                partial,
                error: Error::Cancelled,
            }) => {
                self.keep_cancelled(partial);
                return Some(Stop::Cancelled);
            }
            Err(ask::Broken { error, .. }) => return Some(Stop::Model(error)),
        };
        let Finished {
            parts,
            faults,
            stop_reason,
            ..
        } = finished;
        let calls = tool::calls(&parts, &faults);
        let is_last = self.steps + 1 >= self.turn.limits.max_steps;
        self.say(Role::Assistant, parts, Some(usage));
        if calls.is_empty() {
            self.steps += 1;
            return Some(Stop::Answered(stop_reason.unwrap_or(StopReason::EndTurn)));
        }
        let refusal =
            is_last.then(|| format!("Not run: the limit of {} steps is reached.", self.turn.limits.max_steps));
        let lost = self.call_all(&calls, &request, refusal, tools).await;
        match lost {
            Some(lost) => Some(Stop::Tools(lost)),
            None if self.context.cancel.is_cancelled() => Some(Stop::Cancelled),
            None if is_last => {
                self.steps += 1;
                Some(Stop::MaxSteps)
            }
            None => None,
        }
    }

    fn request(&self, tools: &dyn Tools) -> Result<ModelRequest, Error> {
        let history = self.turn.history.iter().chain(&self.messages).cloned().collect();
        let messages = repair(history);
        if messages.last().is_none_or(|message| message.role != Role::User) {
            return Err(Error::NothingToAnswer);
        }
        Ok(ModelRequest {
            system: self.turn.system.clone(),
            messages,
            tools: tools.definitions(),
            max_output_tokens: self.turn.limits.max_output_tokens,
            temperature: self.turn.temperature,
            stop_sequences: Vec::new(),
            attachments: BTreeMap::new(),
        })
    }

    /// Runs the calls one after the other and says their results. With a `refusal`, none is run.
    async fn call_all(
        &mut self,
        calls: &[tool::Asked],
        request: &ModelRequest,
        mut refusal: Option<String>,
        tools: &mut dyn Tools,
    ) -> Option<ToolsLost> {
        let (sink, cancel) = (self.context.sink, self.context.cancel);
        let mut results = Vec::with_capacity(calls.len());
        let mut lost = None;
        for tool::Asked { call, fault } in calls {
            sink.tool_started(call);
            let known = request.tools.iter().map(|tool| tool.name.as_str());
            let outcome = match (&refusal, fault.clone().or_else(|| tool::unknown(&call.name, known))) {
                (Some(refusal), _) => ToolOutcome::error(refusal.as_str()),
                (None, Some(fault)) => ToolOutcome::error(fault),
                (None, None) => match cancel.run_until_cancelled(tools.call(call, sink)).await {
                    Some(Ok(outcome)) => outcome,
                    Some(Err(gone)) => {
                        lost = Some(gone);
                        refusal = Some("Not run: the sandbox was lost.".to_owned());
                        ToolOutcome::error("No result: the sandbox was lost while this call ran.")
                    }
                    None => {
                        refusal = Some("Not run: the turn was cancelled.".to_owned());
                        ToolOutcome::error("No result: the turn was cancelled while this call ran.")
                    }
                },
            };
            let ToolOutcome { output, is_error } = outcome;
            let outcome = ToolOutcome {
                output: cut(&output, self.turn.limits.tool_output_bytes_max),
                is_error,
            };
            sink.tool_finished(&call.id, &outcome);
            results.push(Part::ToolResult {
                tool_call_id: call.id.clone(),
                is_error,
                output: outcome.output,
            });
        }
        self.say(Role::User, results, None);
        lost
    }

    /// Keeps what a person has seen of an answer that was cancelled. Its calls were not run, so they are not in it.
    fn keep_cancelled(&mut self, partial: Option<(Finished, Usage)>) {
        let Some((mut finished, usage)) = partial else { return };
        finished.parts.retain(|part| !matches!(part, Part::ToolCall { .. }));
        if finished
            .parts
            .iter()
            .any(|part| part.as_text().is_some_and(|text| !text.trim().is_empty()))
        {
            finished.parts.push(Part::Status {
                text: "cancelled".to_owned(),
            });
            self.say(Role::Assistant, finished.parts, Some(usage));
        }
    }

    fn say(&mut self, role: Role, mut parts: Vec<Part>, usage: Option<Usage>) {
        parts.retain(|part| part.as_text().is_none_or(|text| !text.trim().is_empty()));
        if parts.is_empty() {
            return;
        }
        let message = Message {
            job_id: self.turn.job_id,
            usage,
            ..Message::new(role, parts, self.context.clock.now())
        };
        self.context.sink.message(&message);
        self.messages.push(message);
    }
}

#[cfg(test)]
mod tests;
