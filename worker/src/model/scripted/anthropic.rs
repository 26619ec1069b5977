//! The scripted provider on the Anthropic Messages wire, as a server would speak it: pure translation, no I/O.

use common::message::Usage;
use serde_json::{Value, json};
use uuid::Uuid;

use super::frame::Frame;
use super::perform::Step;
use crate::model::answer::Finished;
use crate::model::error::Refusal;
use crate::model::{ModelEvent, StopReason};
use common::message::Part;

/// The body of an error answer.
pub fn error_body(refusal: &Refusal) -> String {
    let error = json!({"type": refusal.kind, "message": refusal.message});
    json!({"type": "error", "error": error, "request_id": "req_scripted"}).to_string()
}

/// The body of a whole answer that is not streamed.
pub fn whole(model: &str, finished: &Finished) -> Value {
    let block = |part: &Part| match part {
        Part::Text { text } => Some(json!({"type": "text", "text": text})),
        Part::Reasoning { text, signature, .. } => {
            Some(json!({"type": "thinking", "thinking": text, "signature": signature.as_deref().unwrap_or_default()}))
        }
        Part::ToolCall { id, name, input } => Some(json!({"type": "tool_use", "id": id, "name": name, "input": input})),
        _ => None,
    };
    let content: Vec<Value> = finished.parts.iter().filter_map(block).collect();
    json!({"id": message_id(), "type": "message", "role": "assistant", "model": model, "content": content,
           "stop_reason": finished.stop_reason, "stop_sequence": null, "usage": usage(&finished.usage)})
}

/// Each answer has its own, as with a real provider: clients take pieces with the same one for one message.
fn message_id() -> String {
    format!("msg_{}", Uuid::now_v7().simple())
}

/// The frames of a performance that does not begin with a refusal.
pub fn frames(model: &str, steps: &[Step]) -> Vec<Frame> {
    let mut writer = Writer {
        frames: Vec::new(),
        model,
        open: None,
        blocks: 0,
        started: false,
        usage: Usage::default(),
    };
    for step in steps {
        match step {
            Step::Event(event) => writer.event(event),
            Step::Wait(pause) => writer.frames.push(Frame::Wait(*pause)),
            Step::Refuse(refusal) => {
                let frame = format!("event: error\ndata: {}\n\n", error_body(refusal));
                writer.frames.push(Frame::Event(frame));
            }
            Step::Cut => writer.frames.push(Frame::Cut),
            Step::Stall => writer.frames.push(Frame::Stall),
        }
    }
    writer.frames
}

/// Totals as the wire has them: `input_tokens` is what was neither read from the cache nor written to it.
fn usage(usage: &Usage) -> Value {
    let written = usage.cache_write_short_tokens + usage.cache_write_long_tokens;
    let fresh = usage.input_tokens.saturating_sub(usage.cached_input_tokens + written);
    json!({"input_tokens": fresh, "cache_read_input_tokens": usage.cached_input_tokens,
           "cache_creation_input_tokens": written,
           "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write_short_tokens,
                              "ephemeral_1h_input_tokens": usage.cache_write_long_tokens},
           "output_tokens": usage.output_tokens, "service_tier": "standard"})
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

struct Writer<'a> {
    frames: Vec<Frame>,
    model: &'a str,
    open: Option<Kind>,
    blocks: u32,
    started: bool,
    usage: Usage,
}

impl Writer<'_> {
    fn event(&mut self, event: &ModelEvent) {
        match event {
            ModelEvent::Usage(usage) => {
                self.usage.merge_snapshot(usage);
                self.start();
            }
            ModelEvent::TextDelta { text } => {
                self.block(Kind::Text, &json!({"type": "text", "text": ""}));
                self.delta(&json!({"type": "text_delta", "text": text}));
            }
            ModelEvent::ReasoningDelta { text } => {
                self.block(
                    Kind::Thinking,
                    &json!({"type": "thinking", "thinking": "", "signature": ""}),
                );
                self.delta(&json!({"type": "thinking_delta", "thinking": text}));
            }
            ModelEvent::ReasoningEnd { signature, .. } => {
                self.delta(&json!({"type": "signature_delta", "signature": signature}));
                self.close();
            }
            ModelEvent::ToolCallStart { id, name, .. } => {
                self.close();
                self.block(
                    Kind::Call,
                    &json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                );
            }
            ModelEvent::ToolCallDelta { json, .. } => {
                self.delta(&json!({"type": "input_json_delta", "partial_json": json}));
            }
            ModelEvent::ToolCallEnd { .. } => self.close(),
            ModelEvent::End { stop_reason } => self.end(stop_reason),
        }
    }

    /// Begins the message, once.
    fn start(&mut self) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let message = json!({"id": message_id(), "type": "message", "role": "assistant", "model": self.model,
                             "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage(&self.usage)});
        self.send("message_start", &json!({"type": "message_start", "message": message}));
        self.send("ping", &json!({"type": "ping"}));
    }

    fn block(&mut self, kind: Kind, content: &Value) {
        if self.open == Some(kind) && kind != Kind::Call {
            return;
        }
        self.start();
        self.close();
        self.open = Some(kind);
        let start = json!({"type": "content_block_start", "index": self.blocks, "content_block": content});
        self.send("content_block_start", &start);
    }

    fn delta(&mut self, delta: &Value) {
        self.send(
            "content_block_delta",
            &json!({"type": "content_block_delta", "index": self.blocks, "delta": delta}),
        );
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.send(
                "content_block_stop",
                &json!({"type": "content_block_stop", "index": self.blocks}),
            );
            self.blocks += 1;
        }
    }

    fn end(&mut self, stop_reason: &StopReason) {
        self.close();
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": null});
        let mut told = usage(&self.usage);
        if self.usage.reasoning_tokens > 0 {
            told["output_tokens_details"] = json!({"thinking_tokens": self.usage.reasoning_tokens});
        }
        self.send(
            "message_delta",
            &json!({"type": "message_delta", "delta": delta, "usage": told}),
        );
        self.frames.push(Frame::Told(self.usage));
        self.send("message_stop", &json!({"type": "message_stop"}));
    }

    fn send(&mut self, name: &str, data: &Value) {
        self.frames
            .push(Frame::Event(format!("event: {name}\ndata: {data}\n\n")));
    }
}
