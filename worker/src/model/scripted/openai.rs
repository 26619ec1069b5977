//! The scripted provider on the OpenAI Chat Completions wire, as a server would speak it: pure translation, no I/O.

use common::message::{Part, Usage};
use serde_json::{Value, json};

use super::frame::Frame;
use super::perform::Step;
use crate::model::answer::Finished;
use crate::model::error::{Reason, Refusal};
use crate::model::{ModelEvent, StopReason};

/// The body of an error answer.
pub fn error_body(refusal: &Refusal) -> String {
    let kind = match refusal.reason {
        Reason::RateLimited => "requests",
        Reason::SpendLimit => "insufficient_quota",
        Reason::Overloaded | Reason::Server | Reason::Timeout => "server_error",
        _ => "invalid_request_error",
    };
    json!({"error": {"message": refusal.message, "type": kind, "param": null, "code": refusal.kind}}).to_string()
}

/// The body of a whole answer that is not streamed.
pub fn whole(model: &str, finished: &Finished) -> Value {
    let calls: Vec<Value> = finished.parts.iter().filter_map(call).collect();
    let texts: Vec<&str> = finished.parts.iter().filter_map(Part::as_text).collect();
    let mut message = json!({"role": "assistant", "refusal": null,
        "content": if texts.is_empty() { Value::Null } else { texts.concat().into() }});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    let reason = finished.stop_reason.as_ref().map(finish_reason);
    json!({"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": model,
           "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": reason}],
           "usage": usage(&finished.usage)})
}

fn call(part: &Part) -> Option<Value> {
    match part {
        Part::ToolCall { id, name, input } => {
            let function = json!({"name": name, "arguments": input.to_string()});
            Some(json!({"id": id, "type": "function", "function": function}))
        }
        _ => None,
    }
}

fn usage(usage: &Usage) -> Value {
    let written = usage.cache_write_short_tokens + usage.cache_write_long_tokens;
    json!({"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
           "total_tokens": usage.input_tokens + usage.output_tokens,
           "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens, "cache_write_tokens": written},
           "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens}})
}

fn finish_reason(reason: &StopReason) -> &str {
    match reason {
        StopReason::EndTurn | StopReason::StopSequence | StopReason::PauseTurn => "stop",
        StopReason::MaxTokens | StopReason::ContextWindowExceeded => "length",
        StopReason::ToolUse => "tool_calls",
        StopReason::Refusal => "content_filter",
        StopReason::Other(other) => other,
    }
}

/// The frames of a performance that does not begin with a refusal. Usage is told when the client asked for it.
pub fn frames(model: &str, steps: &[Step], tells_usage: bool) -> Vec<Frame> {
    let mut writer = Writer {
        frames: Vec::new(),
        model,
        tells_usage,
        usage: Usage::default(),
        calls: Vec::new(),
        started: false,
    };
    for step in steps {
        match step {
            Step::Event(event) => writer.event(event),
            Step::Wait(pause) => writer.frames.push(Frame::Wait(*pause)),
            Step::Refuse(refusal) => {
                let frame = format!("data: {}\n\n", error_body(refusal));
                writer.frames.push(Frame::Event(frame));
            }
            Step::Cut => writer.frames.push(Frame::Cut),
            Step::Stall => writer.frames.push(Frame::Stall),
        }
    }
    writer.frames
}

struct Writer<'a> {
    frames: Vec<Frame>,
    model: &'a str,
    tells_usage: bool,
    usage: Usage,
    /// Our index of each call; its place is the wire's index.
    calls: Vec<u32>,
    started: bool,
}

impl Writer<'_> {
    fn event(&mut self, event: &ModelEvent) {
        match event {
            ModelEvent::Usage(usage) => {
                self.usage.merge_snapshot(usage);
                if !std::mem::replace(&mut self.started, true) {
                    self.delta(&json!({"role": "assistant", "content": "", "refusal": null}));
                }
            }
            ModelEvent::TextDelta { text } => self.delta(&json!({"content": text})),
            ModelEvent::ReasoningDelta { text } => self.delta(&json!({"reasoning_content": text})),
            ModelEvent::ReasoningEnd { .. } | ModelEvent::ToolCallEnd { .. } => {}
            ModelEvent::ToolCallStart { index, id, name } => {
                let function = json!({"name": name, "arguments": ""});
                let call = json!({"index": self.calls.len(), "id": id, "type": "function", "function": function});
                self.calls.push(*index);
                self.delta(&json!({"tool_calls": [call]}));
            }
            ModelEvent::ToolCallDelta { index, json } => {
                let at = self.calls.iter().position(|call| call == index);
                let call = json!({"index": at, "function": {"arguments": json}});
                self.delta(&json!({"tool_calls": [call]}));
            }
            ModelEvent::End { stop_reason } => self.end(stop_reason),
        }
    }

    fn delta(&mut self, delta: &Value) {
        self.choice(delta, None);
    }

    fn choice(&mut self, delta: &Value, reason: Option<&str>) {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
        self.send(&json!([choice]), None);
    }

    fn end(&mut self, stop_reason: &StopReason) {
        self.choice(&json!({}), Some(finish_reason(stop_reason)));
        if self.tells_usage {
            self.send(&json!([]), Some(usage(&self.usage)));
        }
        self.frames.push(Frame::Told(self.usage));
        self.frames.push(Frame::Event("data: [DONE]\n\n".to_owned()));
    }

    fn send(&mut self, choices: &Value, usage: Option<Value>) {
        let mut chunk = json!({"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0,
                               "model": self.model, "choices": choices});
        if self.tells_usage {
            chunk["usage"] = usage.into();
        }
        self.frames.push(Frame::Event(format!("data: {chunk}\n\n")));
    }
}
