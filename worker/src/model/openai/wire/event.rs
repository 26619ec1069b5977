//! Chunks of a stream, one after the other.

use common::message::Usage;
use serde_json::Value;

use crate::model::{Error, ModelEvent, StopReason, refusal};

/// What stands after the last chunk.
const DONE: &str = "[DONE]";

/// Reads the chunks of one answer. Feed it each event's data, in order, until [`Decoder::is_over`].
#[derive(Debug, Default)]
pub struct Decoder {
    calls: Vec<Call>,
    is_thinking: bool,
    usage: Usage,
    stop_reason: Option<StopReason>,
    is_over: bool,
}

/// A tool call while it comes in. Its place among them is its index in our events.
#[derive(Debug)]
struct Call {
    /// Its index on the wire.
    index: u64,
    /// Its id; some servers repeat it with every piece.
    id: String,
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
        if data.trim() == DONE {
            return self.end().map(|end| vec![end]);
        }
        let chunk: Value = serde_json::from_str(data).map_err(|error| Error::Malformed {
            what: format!("a chunk is not JSON: {error}"),
        })?;
        if !chunk["error"].is_null() {
            self.is_over = true;
            return Err(Error::Refused(Box::new(refusal::from_event(&chunk))));
        }
        let mut events = Vec::new();
        if let Some(choice) = chunk["choices"].as_array().and_then(|choices| choices.first()) {
            self.delta(&choice["delta"], &mut events);
            if let Some(reason) = choice["finish_reason"].as_str().filter(|reason| !reason.is_empty()) {
                self.finish(reason, &mut events);
            }
        }
        // On the last chunk without choices, on the one with the reason to stop, or growing on every chunk.
        if chunk["usage"].is_object() {
            self.usage.merge_snapshot(&usage(&chunk["usage"]));
            events.push(ModelEvent::Usage(self.usage));
        }
        Ok(events)
    }

    /// The last event, once the bytes have ended. Some servers leave out `[DONE]`; the reason to stop is enough.
    ///
    /// # Errors
    /// [`Error::Cut`] when the answer was not over.
    pub fn end(&mut self) -> Result<ModelEvent, Error> {
        self.is_over = true;
        match self.stop_reason.take() {
            Some(stop_reason) => Ok(ModelEvent::End { stop_reason }),
            None => Err(Error::Cut(None)),
        }
    }

    fn delta(&mut self, delta: &Value, events: &mut Vec<ModelEvent>) {
        // Not OpenAI's own, but what those who show reasoning call it.
        for name in ["reasoning_content", "reasoning"] {
            if let Some(text) = said(&delta[name]) {
                self.is_thinking = true;
                events.push(ModelEvent::ReasoningDelta { text });
                break;
            }
        }
        for name in ["content", "refusal"] {
            if let Some(text) = said(&delta[name]) {
                self.stop_thinking(events);
                events.push(ModelEvent::TextDelta { text });
            }
        }
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            self.stop_thinking(events);
            self.call(piece, events);
        }
    }

    fn stop_thinking(&mut self, events: &mut Vec<ModelEvent>) {
        if std::mem::take(&mut self.is_thinking) {
            events.push(ModelEvent::ReasoningEnd {
                signature: None,
                redacted: None,
            });
        }
    }

    fn call(&mut self, piece: &Value, events: &mut Vec<ModelEvent>) {
        let function = &piece["function"];
        let (id, name) = (said(&piece["id"]), said(&function["name"]));
        let last = self.calls.last().map_or(0, |call| call.index);
        let index = piece["index"].as_u64().unwrap_or(last);
        let open = self.calls.iter().rposition(|call| call.index == index);
        // Servers that send whole calls may give all of them one index, or none: another id is another call.
        let is_it = |n: usize| id.as_ref().is_none_or(|id| self.calls[n].id == *id);
        let n = if let Some(n) = open.filter(|n| is_it(*n)) {
            n
        } else {
            let n = self.calls.len();
            let id = id.unwrap_or_else(|| format!("call_{n}"));
            events.push(ModelEvent::ToolCallStart {
                index: ours(n),
                id: id.clone(),
                name: name.unwrap_or_default(),
            });
            self.calls.push(Call { index, id });
            n
        };
        let arguments = match &function["arguments"] {
            // Against the wire's rules, and seen.
            object @ Value::Object(_) => Some(object.to_string()),
            text => said(text),
        };
        if let Some(json) = arguments {
            events.push(ModelEvent::ToolCallDelta { index: ours(n), json });
        }
    }

    fn finish(&mut self, reason: &str, events: &mut Vec<ModelEvent>) {
        self.stop_thinking(events);
        // Pieces of parallel calls may come mixed, so none ends before all do. Of an answer that was cut at its most tokens
        // the last one is broken, which its input shows.
        events.extend((0..self.calls.len()).map(|n| ModelEvent::ToolCallEnd { index: ours(n) }));
        self.stop_reason = Some(match reason {
            "stop" | "tool_calls" | "function_call" if !self.calls.is_empty() => StopReason::ToolUse,
            "stop" => StopReason::EndTurn,
            "length" => StopReason::MaxTokens,
            "content_filter" => StopReason::Refusal,
            other => StopReason::Other(other.to_owned()),
        });
    }
}

fn ours(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn said(text: &Value) -> Option<String> {
    text.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What a `usage` object reports. `prompt_tokens` includes what was read from and written to the cache, and
/// `completion_tokens` includes reasoning; with servers that leave it out there (xAI, Gemini) the total has it.
pub fn usage(usage: &Value) -> Usage {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let (prompt, completion) = (&usage["prompt_tokens_details"], &usage["completion_tokens_details"]);
    let input_tokens = count(&usage["prompt_tokens"]);
    let cached = count(&prompt["cached_tokens"]).max(count(&usage["prompt_cache_hit_tokens"]));
    let cached_input_tokens = cached.min(input_tokens);
    let rest = count(&usage["total_tokens"]).saturating_sub(input_tokens);
    let output_tokens = count(&usage["completion_tokens"]).max(rest);
    Usage {
        input_tokens,
        cached_input_tokens,
        cache_write_short_tokens: count(&prompt["cache_write_tokens"]).min(input_tokens - cached_input_tokens),
        cache_write_long_tokens: 0,
        output_tokens,
        reasoning_tokens: count(&completion["reasoning_tokens"]).min(output_tokens),
        estimated: false,
    }
}

#[cfg(test)]
mod tests;
