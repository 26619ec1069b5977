//! The journal: what a turn has finished, committed before it is used.
//!
//! A call of the model or of a tool is written down when it has ended, and only then does the turn go on with what it
//! brought. So whoever takes a crashed turn over goes on behind the last finished call: [`super::resume`] says what it
//! begins with. That a call begins is written too, while it goes on: one that began and whose end is missing is made
//! again, and is counted.

use common::message::Message;
use common::store::usage::Call;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::ToolOutcome;
use crate::model::StopReason;

/// Which call of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallKey {
    /// The step, from 0: one call of the model and the tools that it calls.
    pub step: u32,
    /// Which of the step's tool calls, from 0; none for the call of the model.
    pub place: Option<u32>,
    /// The attempt whose answer it builds on: of the step before for a call of the model, of the same step for a tool's.
    pub parent: Option<u32>,
}

/// A finished answer of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The message.
    pub message: Message,
    /// The calls in it whose input the model got wrong: (id, what is wrong).
    #[serde(default)]
    pub faults: Vec<(String, String)>,
    /// Why the model ended.
    pub stop_reason: StopReason,
    /// What it used, so that it is metered also when its worker died before that was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Call>,
}

/// What a finished call brought.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// An answer.
    Answer(&'a Answered),
    /// What a tool answered, as the model sees it.
    Outcome(&'a ToolOutcome),
}

/// What was finished cannot be written down, so the turn cannot use it.
#[derive(Debug, thiserror::Error)]
#[error("what the turn has done could not be written down")]
pub struct JournalLost(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Where a turn writes down what it has finished, and hears what is said to it meanwhile.
pub trait Journal: Send + Sync {
    /// The number of this attempt.
    fn attempt(&self) -> u32;

    /// A call begins. Runs beside the call and must not fail it: what is not written is not counted, that is all.
    fn begin(&self, call: CallKey) -> BoxFuture<'_, ()>;

    /// A call has failed, so it is none of those whose end nobody knows. What is not written is counted, that is all.
    fn fail(&self, call: CallKey) -> BoxFuture<'_, ()>;

    /// Commits what a call brought; waits as long as that takes.
    ///
    /// # Errors
    /// [`JournalLost`] when it will never be committed.
    fn finish<'a>(&'a self, call: CallKey, record: Record<'a>) -> BoxFuture<'a, Result<(), JournalLost>>;

    /// Takes the messages that came for the turn since the last call, to be heard at `step`.
    ///
    /// # Errors
    /// [`JournalLost`] when they cannot be taken.
    fn take_messages(&self, step: u32) -> BoxFuture<'_, Result<Vec<Message>, JournalLost>>;
}

/// Writes nothing down, for turns that nobody takes over.
#[derive(Clone, Copy, Debug)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn attempt(&self) -> u32 {
        1
    }

    fn begin(&self, _call: CallKey) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn fail(&self, _call: CallKey) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn finish<'a>(&'a self, _call: CallKey, _record: Record<'a>) -> BoxFuture<'a, Result<(), JournalLost>> {
        async { Ok(()) }.boxed()
    }

    fn take_messages(&self, _step: u32) -> BoxFuture<'_, Result<Vec<Message>, JournalLost>> {
        async { Ok(Vec::new()) }.boxed()
    }
}
