//! The native harness: our own tool loop.
//!
//! A turn asks the model, runs the tools that it calls, gives it their results and asks again, until it answers without
//! a call. The loop knows neither sandbox nor queue: it reaches tools through [`Tools`] and says what happens to a
//! [`TurnSink`], so it runs the same in a test and in a worker.
//!
//! # Invariants
//! - Whatever stops a turn, the history with the turn's messages appended is valid: every call that is in it has its
//!   result, which says what happened.
//! - What was streamed to a person of an answer that was cancelled or failed is kept, with a note. Where another attempt says
//!   everything again, the settlement leaves it out; an attempt that only waits does not keep it.
//! - A call that has ended is in the [`Journal`] before anything follows from it, so no attempt makes it again.
//! - A tool that fails is the model's affair and part of the conversation; a lost sandbox is the attempt's failure.
//!
//! # Not here
//! The tools themselves are the caller's; what one failed call of a model means is [`crate::model::open()`].

mod ask;
mod calls;
mod cut;
pub mod edit;
pub mod journal;
pub mod resume;
mod sink;
mod step;
pub mod tool;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::clock::Clock;
use common::ids::JobId;
use common::job::failure::{Failure, FailureCode};
use common::message::{Message, Role, Usage};
use tokio_util::sync::CancellationToken;

pub use cut::cut;
pub use journal::{Journal, JournalLost, NoJournal};
pub use resume::Resume;
pub use sink::{CallUsage, EventSink, TurnSink};
pub use tool::{NoTools, ToolCall, ToolInput, ToolOutcome, Tools, ToolsFailed, ToolsLost};

use crate::model::{Attachment, Caller, Error, ModelName, StopReason};
use step::Run;

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
    /// Tools that run only when a person says so, and how long that may take.
    pub asks: HashMap<String, Duration>,
    /// Images among the files that messages name, by their path.
    pub attachments: BTreeMap<String, Attachment>,
    /// What earlier attempts have done of it.
    pub resume: Resume,
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
    /// Most tools of one answer that run at once.
    pub parallel_tools_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_steps: 50,
            max_output_tokens: 8_192,
            tool_output_bytes_max: 32 * 1024,
            parallel_tools_max: 8,
        }
    }
}

/// What a turn is taken with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// With what models are called.
    pub caller: &'a Caller,
    /// What time it is.
    pub clock: &'a Clock,
    /// Who is told what happens.
    pub sink: &'a dyn TurnSink,
    /// Where finished calls are committed.
    pub journal: &'a dyn Journal,
    /// Ends the turn at any point.
    pub cancel: &'a CancellationToken,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("caller", self.caller)
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
    /// What it has done could not be written down.
    Journal(JournalLost),
    /// Calls need a person's permission. The turn goes on in another attempt, when there is an answer.
    Asks(Vec<Question>),
}

/// A call that needs a person's permission, and has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The step of the call.
    pub step: u32,
    /// Its place among the calls of the step.
    pub place: u32,
    /// The attempt whose answer holds the call.
    pub parent: u32,
    /// The call.
    pub call: ToolCall,
    /// How long a person may take.
    pub patience: Duration,
    /// Until when, where it was asked before.
    pub asked_until: Option<DateTime<Utc>>,
}

impl Stop {
    /// The failure that it means for the job; none when it answered or was cancelled.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Self::Answered(_) | Self::Cancelled | Self::Asks(_) => None,
            Self::MaxSteps => Some(Failure::new(
                FailureCode::MaxSteps,
                "the agent took its last step without an answer",
            )),
            Self::Model(error) => Some(error.failure()),
            Self::Tools(lost) => Some(lost.failure()),
            Self::Journal(lost) => Some(Failure::new(FailureCode::Internal, lost.to_string())),
        }
    }

    /// How long to wait when that is all that is to be done: no failure, only a provider's limit.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Model(error) => error.wait(),
            _ => None,
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
pub async fn run(turn: Turn, context: Context<'_>, tools: &dyn Tools) -> TurnEnd {
    let mut run = Run::new(turn, context);
    let stop = loop {
        if let Err(stop) = run.step(tools).await {
            break stop;
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

#[cfg(test)]
mod tests;

#[cfg(test)]
mod wires;
