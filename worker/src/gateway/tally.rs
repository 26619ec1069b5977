//! Counting what passes: the usage that a provider reports, of an answer that goes on to the program as it came.

use std::sync::Arc;

use bytes::Bytes;
use common::message::Usage;
use serde_json::Value;

use super::account::Account;
use super::frames;
use crate::model::wire::{Decoder, Wire};
use crate::model::{Answer, Error, ModelName};

/// One answer's count. Dropping it writes the call down, with what nobody counted estimated: a program that goes away
/// in the middle has used what it has used.
pub(super) struct Tally {
    account: Arc<Account>,
    model: ModelName,
    wire: Wire,
    decoder: Decoder,
    answer: Option<Answer>,
    is_readable: bool,
    /// Whether usage at the end was asked for by the gateway alone, and is kept from the program.
    hides_usage: bool,
}

/// What a frame was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Something of the answer itself: from here on nothing is asked again.
    pub(super) is_content: bool,
    /// It is not for the program.
    pub(super) is_hidden: bool,
}

impl Tally {
    pub(super) fn new(account: &Arc<Account>, model: &ModelName, wire: Wire, hides_usage: bool) -> Self {
        Self {
            account: Arc::clone(account),
            model: model.clone(),
            wire,
            decoder: Decoder::new(wire),
            answer: Some(Answer::new(model.provider())),
            is_readable: true,
            hides_usage,
        }
    }

    /// Looks at the next frame of a stream.
    ///
    /// # Errors
    /// The error that it reports, or that it cannot be read. After content it goes on to the program all the same.
    pub(super) fn frame(&mut self, frame: &[u8]) -> Result<Seen, Error> {
        let data = frames::data(frame);
        if data.is_empty() || !self.is_readable || self.decoder.is_over() {
            return Ok(Seen::default());
        }
        let events = self
            .decoder
            .event(&data)
            .inspect_err(|_error| self.is_readable = false)?;
        let seen = Seen {
            is_content: events.iter().any(crate::model::ModelEvent::is_content),
            is_hidden: self.hides_usage && self.wire == Wire::OpenAi && is_usage_alone(&data),
        };
        if let Some(answer) = &mut self.answer {
            for event in events {
                answer.push(event);
            }
        }
        Ok(seen)
    }

    /// The stream has ended: whether its answer was whole.
    pub(super) fn is_whole(&mut self) -> bool {
        if self.is_readable && !self.decoder.is_over() {
            // Some servers leave out the last word.
            let end = self.decoder.end();
            if let (Ok(event), Some(answer)) = (end, &mut self.answer) {
                answer.push(event);
                return true;
            }
            return false;
        }
        true
    }

    /// Takes an answer that is one document.
    pub(super) fn document(mut self, body: &Bytes) {
        self.answer = None;
        let usage = serde_json::from_slice::<Value>(body)
            .ok()
            .and_then(|answer| self.wire.usage_of(&answer));
        self.account.write(&self.model, usage.unwrap_or_default());
    }

    /// What was used before it failed; it is written down by whoever asks.
    pub(super) fn failed(mut self) -> Option<Usage> {
        let usage = self.answer.take().map(|answer| answer.finish().usage);
        usage.filter(|usage| *usage != Usage::default())
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.account.write(&self.model, answer.finish().usage);
        }
    }
}

/// A chunk that says nothing but what was used.
fn is_usage_alone(data: &str) -> bool {
    data.contains("\"usage\"")
        && serde_json::from_str::<Value>(data)
            .is_ok_and(|chunk| chunk["usage"].is_object() && chunk["choices"].as_array().is_none_or(Vec::is_empty))
}
