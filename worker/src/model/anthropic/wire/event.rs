//! Events of a stream, one after the other.

use std::collections::BTreeMap;

use common::message::Usage;
use serde_json::Value;

use crate::model::{Error, ModelEvent, StopReason, refusal};

/// Reads the events of one answer. Feed it each event's data, in order, until [`Decoder::is_over`].
#[derive(Debug, Default)]
pub struct Decoder {
    blocks: BTreeMap<u64, Block>,
    usage: WireUsage,
    stop_reason: Option<StopReason>,
    is_over: bool,
}

/// A content block that is open.
#[derive(Debug)]
enum Block {
    Text,
    Reasoning {
        signature: String,
        redacted: Option<String>,
    },
    Call {
        index: u32,
    },
    /// A kind that this version does not know.
    Other,
}

impl Decoder {
    /// Whether the answer is over, so that nothing more is to be read.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes in the data of one event.
    ///
    /// # Errors
    /// [`Error::Refused`] when the event is an error, [`Error::Malformed`] when it cannot be read.
    pub fn event(&mut self, data: &str) -> Result<Vec<ModelEvent>, Error> {
        let event: Value = serde_json::from_str(data).map_err(|error| Error::Malformed {
            what: format!("an event is not JSON: {error}"),
        })?;
        match event["type"].as_str().unwrap_or_default() {
            "message_start" => Ok(self.take_usage(&event["message"]["usage"])),
            "content_block_start" => self.block_start(&event),
            "content_block_delta" => self.block_delta(&event),
            "content_block_stop" => Ok(self.block_stop(&event)),
            "message_delta" => {
                if let Some(reason) = event["delta"]["stop_reason"].as_str() {
                    self.stop_reason = Some(stop_reason(reason));
                }
                Ok(self.take_usage(&event["usage"]))
            }
            "message_stop" => self.end().map(|end| vec![end]),
            "error" => {
                self.is_over = true;
                Err(Error::Refused(Box::new(refusal::from_event(&event))))
            }
            // Pings, and what is newer than this.
            _ => Ok(Vec::new()),
        }
    }

    /// The last event, once the bytes have ended. Some servers leave out `message_stop`; the reason to stop is enough.
    ///
    /// # Errors
    /// [`Error::Cut`] when the answer was not over.
    pub fn end(&mut self) -> Result<ModelEvent, Error> {
        self.is_over = true;
        match self.stop_reason.take() {
            Some(stop_reason) if !self.blocks.values().any(|block| matches!(block, Block::Call { .. })) => {
                Ok(ModelEvent::End { stop_reason })
            }
            _ => Err(Error::Cut(None)),
        }
    }

    fn take_usage(&mut self, usage: &Value) -> Vec<ModelEvent> {
        if !usage.is_object() {
            return Vec::new();
        }
        self.usage.merge(usage);
        vec![ModelEvent::Usage(self.usage.total())]
    }

    fn block_start(&mut self, event: &Value) -> Result<Vec<ModelEvent>, Error> {
        let (key, content) = (block_key(event)?, &event["content_block"]);
        let mut events = Vec::new();
        let block = match content["type"].as_str().unwrap_or_default() {
            "text" => {
                text(&mut events, &content["text"]);
                Block::Text
            }
            "thinking" => {
                reasoning(&mut events, &content["thinking"]);
                let signature = content["signature"].as_str().unwrap_or_default().to_owned();
                Block::Reasoning {
                    signature,
                    redacted: None,
                }
            }
            "redacted_thinking" => {
                let redacted = content["data"].as_str().map(str::to_owned);
                Block::Reasoning {
                    signature: String::new(),
                    redacted,
                }
            }
            "tool_use" => {
                let index = u32::try_from(key).map_err(|_too_big| malformed("a block's index is too big"))?;
                let word = |name: &str| content[name].as_str().unwrap_or_default().to_owned();
                events.push(ModelEvent::ToolCallStart {
                    index,
                    id: word("id"),
                    name: word("name"),
                });
                // Most servers begin with {} and send the input in pieces; some send it whole, here.
                if content["input"].as_object().is_some_and(|input| !input.is_empty()) {
                    events.push(ModelEvent::ToolCallDelta {
                        index,
                        json: content["input"].to_string(),
                    });
                }
                Block::Call { index }
            }
            _ => Block::Other,
        };
        self.blocks.insert(key, block);
        Ok(events)
    }

    fn block_delta(&mut self, event: &Value) -> Result<Vec<ModelEvent>, Error> {
        let (key, delta) = (block_key(event)?, &event["delta"]);
        let block = self
            .blocks
            .get_mut(&key)
            .ok_or_else(|| malformed("a delta of a block that is not open"))?;
        let mut events = Vec::new();
        match (block, delta["type"].as_str().unwrap_or_default()) {
            (Block::Text, "text_delta") => text(&mut events, &delta["text"]),
            (Block::Reasoning { .. }, "thinking_delta") => reasoning(&mut events, &delta["thinking"]),
            (Block::Reasoning { signature, .. }, "signature_delta") => {
                signature.push_str(delta["signature"].as_str().unwrap_or_default());
            }
            (Block::Call { index }, "input_json_delta") => {
                if let Some(json) = delta["partial_json"].as_str().filter(|json| !json.is_empty()) {
                    events.push(ModelEvent::ToolCallDelta {
                        index: *index,
                        json: json.to_owned(),
                    });
                }
            }
            // Citations, and what is newer than this.
            _ => {}
        }
        Ok(events)
    }

    fn block_stop(&mut self, event: &Value) -> Vec<ModelEvent> {
        let key = block_key(event).ok();
        match key.and_then(|key| self.blocks.remove(&key)) {
            Some(Block::Reasoning { signature, redacted }) => {
                let signature = (!signature.is_empty()).then_some(signature);
                vec![ModelEvent::ReasoningEnd { signature, redacted }]
            }
            Some(Block::Call { index }) => vec![ModelEvent::ToolCallEnd { index }],
            Some(Block::Text | Block::Other) | None => Vec::new(),
        }
    }
}

fn block_key(event: &Value) -> Result<u64, Error> {
    event["index"]
        .as_u64()
        .ok_or_else(|| malformed("a block without an index"))
}

fn malformed(what: &str) -> Error {
    Error::Malformed { what: what.to_owned() }
}

fn text(events: &mut Vec<ModelEvent>, text: &Value) {
    if let Some(text) = text.as_str().filter(|text| !text.is_empty()) {
        events.push(ModelEvent::TextDelta { text: text.to_owned() });
    }
}

fn reasoning(events: &mut Vec<ModelEvent>, text: &Value) {
    if let Some(text) = text.as_str().filter(|text| !text.is_empty()) {
        events.push(ModelEvent::ReasoningDelta { text: text.to_owned() });
    }
}

fn stop_reason(wire: &str) -> StopReason {
    match wire {
        "end_turn" => StopReason::EndTurn,
        "max_tokens" => StopReason::MaxTokens,
        "stop_sequence" => StopReason::StopSequence,
        "tool_use" => StopReason::ToolUse,
        "pause_turn" => StopReason::PauseTurn,
        "refusal" => StopReason::Refusal,
        "model_context_window_exceeded" => StopReason::ContextWindowExceeded,
        other => StopReason::Other(other.to_owned()),
    }
}

/// What a `usage` object reports.
pub fn usage(usage: &Value) -> Usage {
    let mut counted = WireUsage::default();
    counted.merge(usage);
    counted.total()
}

/// Usage as the wire counts it: `input_tokens` is what was neither read from the cache nor written to it. The fields are
/// merged one by one before they are added up, because gateways report some early and some late.
#[derive(Debug, Default)]
struct WireUsage {
    input: u64,
    cache_read: u64,
    cache_write: u64,
    cache_write_5m: u64,
    cache_write_1h: u64,
    output: u64,
    reasoning: u64,
}

impl WireUsage {
    fn merge(&mut self, usage: &Value) {
        let later = |field: &mut u64, value: &Value| *field = (*field).max(value.as_u64().unwrap_or(0));
        later(&mut self.input, &usage["input_tokens"]);
        later(&mut self.cache_read, &usage["cache_read_input_tokens"]);
        later(&mut self.cache_write, &usage["cache_creation_input_tokens"]);
        later(
            &mut self.cache_write_5m,
            &usage["cache_creation"]["ephemeral_5m_input_tokens"],
        );
        later(
            &mut self.cache_write_1h,
            &usage["cache_creation"]["ephemeral_1h_input_tokens"],
        );
        later(&mut self.output, &usage["output_tokens"]);
        later(&mut self.reasoning, &usage["output_tokens_details"]["thinking_tokens"]);
        later(&mut self.reasoning, &usage["output_tokens_details"]["reasoning_tokens"]);
    }

    fn total(&self) -> Usage {
        let written = self
            .cache_write
            .max(self.cache_write_5m.saturating_add(self.cache_write_1h));
        Usage {
            input_tokens: self.input.saturating_add(self.cache_read).saturating_add(written),
            cached_input_tokens: self.cache_read,
            cache_write_short_tokens: written.saturating_sub(self.cache_write_1h),
            cache_write_long_tokens: self.cache_write_1h,
            output_tokens: self.output,
            reasoning_tokens: self.reasoning,
            estimated: false,
        }
    }
}

#[cfg(test)]
mod tests;
