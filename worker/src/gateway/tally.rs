//! Counting what passes: the usage that a provider reports, of an answer that goes on to the program as it came.

use bytes::Bytes;
use common::message::Usage;
use serde_json::Value;

use super::frames;
use crate::model::wire::{Decoder, Wire};
use crate::model::{Answer, Error, ModelName};

/// One answer's count.
pub(super) struct Tally {
    wire: Wire,
    decoder: Decoder,
    answer: Answer,
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
    /// Nothing yet, of an answer to a request of so many bytes.
    pub(super) fn new(model: &ModelName, wire: Wire, request_bytes: u64, hides_usage: bool) -> Self {
        Self {
            wire,
            decoder: Decoder::new(wire),
            answer: Answer::new(model.provider()).asked_with(request_bytes),
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
        for event in events {
            self.answer.push(event);
        }
        Ok(seen)
    }

    /// The stream has ended: whether its answer was whole.
    pub(super) fn is_whole(&mut self) -> bool {
        if self.is_readable && !self.decoder.is_over() {
            // Some servers leave out the last word.
            return match self.decoder.end() {
                Ok(event) => {
                    self.answer.push(event);
                    true
                }
                Err(_) => false,
            };
        }
        true
    }

    /// What was used so far: as the provider says, and estimated where it does not.
    pub(super) fn usage(&self) -> Usage {
        self.answer.usage()
    }

    /// What was used, if anything of it is known.
    pub(super) fn known(&self) -> Option<Usage> {
        self.answer.is_begun().then(|| self.usage())
    }

    /// What an answer that is one document used; estimated when it does not say.
    pub(super) fn of_document(&self, body: &Bytes) -> Usage {
        let answer = serde_json::from_slice::<Value>(body).ok();
        let reported = answer.and_then(|answer| self.wire.usage_of(&answer));
        reported.unwrap_or_else(|| Usage {
            output_tokens: u64::try_from(body.len().div_ceil(4)).unwrap_or(u64::MAX),
            ..self.usage()
        })
    }
}

/// A chunk that says nothing but what was used.
fn is_usage_alone(data: &str) -> bool {
    data.contains("\"usage\"")
        && serde_json::from_str::<Value>(data)
            .is_ok_and(|chunk| chunk["usage"].is_object() && chunk["choices"].as_array().is_none_or(Vec::is_empty))
}
