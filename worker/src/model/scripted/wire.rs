//! The scripted provider on the Anthropic Messages wire, as a server would speak it: pure translation, no I/O.

use std::time::Duration;

use chrono::DateTime;
use common::message::{Message, Part, Role, Usage};
use serde_json::{Value, json};

use super::perform::Step;
use crate::model::error::Refusal;
use crate::model::{ModelEvent, ModelRequest, StopReason, ToolDefinition};

/// One step of a server's answer after its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Sends this event, whole.
    Event(String),
    /// Waits.
    Wait(Duration),
    /// Breaks the connection.
    Cut,
    /// Falls silent for ever.
    Stall,
}

/// The model's name and the request in the body of `POST /v1/messages`.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn read_request(body: &[u8]) -> Result<(String, ModelRequest), String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let model = body["model"].as_str().ok_or("model: field required")?;
    let messages = body["messages"].as_array().ok_or("messages: field required")?;
    let tools = body["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    let request = ModelRequest {
        system: body["system"].as_str().unwrap_or_default().to_owned(),
        messages: messages.iter().map(read_message).collect::<Result<_, _>>()?,
        tools: tools.iter().map(read_tool).collect(),
        max_output_tokens: body["max_tokens"]
            .as_u64()
            .and_then(|n| n.try_into().ok())
            .ok_or("max_tokens: required")?,
        temperature: None,
        stop_sequences: Vec::new(),
    };
    refuse_what_the_real_one_refuses(&request)?;
    Ok((model.to_owned(), request))
}

fn read_tool(tool: &Value) -> ToolDefinition {
    let word = |name: &str| tool[name].as_str().unwrap_or_default().to_owned();
    ToolDefinition {
        name: word("name"),
        description: word("description"),
        input_schema: tool["input_schema"].clone(),
    }
}

fn read_message(message: &Value) -> Result<Message, String> {
    let role = match message["role"].as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => return Err(format!("messages: unexpected role {other:?}")),
    };
    let parts = match &message["content"] {
        Value::String(text) => vec![Part::text(text)],
        Value::Array(blocks) => blocks.iter().map(read_block).collect::<Result<_, _>>()?,
        _ => return Err("messages: content must be a string or a list".to_owned()),
    };
    Ok(Message::new(role, parts, DateTime::UNIX_EPOCH))
}

fn read_block(block: &Value) -> Result<Part, String> {
    let word = |name: &str| block[name].as_str().unwrap_or_default().to_owned();
    match block["type"].as_str() {
        Some("text") if word("text").trim().is_empty() => Err("text content blocks must be non-empty".to_owned()),
        Some("text") => Ok(Part::text(word("text"))),
        Some("thinking" | "redacted_thinking") => Ok(Part::Reasoning {
            text: word("thinking"),
            signature: block["signature"].as_str().map(str::to_owned),
            redacted: block["data"].as_str().map(str::to_owned),
            provider: Some("anthropic".to_owned()),
        }),
        Some("tool_use") => Ok(Part::ToolCall {
            id: word("id"),
            name: word("name"),
            input: block["input"].clone(),
        }),
        Some("tool_result") => Ok(Part::ToolResult {
            tool_call_id: word("tool_use_id"),
            is_error: block["is_error"].as_bool().unwrap_or(false),
            output: word("content"),
        }),
        other => Err(format!("messages: unexpected block {other:?}")),
    }
}

/// A provider answers 400 to a history that [`common::message::repair`] would have changed; so does this one.
fn refuse_what_the_real_one_refuses(request: &ModelRequest) -> Result<(), String> {
    let shape = |messages: &[Message]| -> Vec<(Role, Vec<Part>)> {
        messages
            .iter()
            .map(|message| (message.role, message.parts.clone()))
            .collect()
    };
    if shape(&common::message::repair(request.messages.clone())) != shape(&request.messages) {
        return Err(
            "messages: roles must alternate and every tool_use needs its tool_result directly after".to_owned(),
        );
    }
    match request.messages.last() {
        Some(Message { role: Role::User, .. }) => Ok(()),
        _ => Err("messages: the conversation must end with a user message".to_owned()),
    }
}

/// The body of an error answer.
pub fn error_body(refusal: &Refusal) -> String {
    json!({"type": "error", "error": {"type": refusal.kind, "message": refusal.message}}).to_string()
}

/// The frames of a performance that does not begin with a refusal.
pub fn frames(model: &str, steps: &[Step]) -> Vec<Frame> {
    let mut writer = Writer {
        frames: Vec::new(),
        model,
        open: None,
        blocks: 0,
        started: false,
        output_tokens: 0,
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
    output_tokens: u64,
}

impl Writer<'_> {
    fn event(&mut self, event: &ModelEvent) {
        match event {
            ModelEvent::Usage(usage) if self.started => self.output_tokens = usage.output_tokens,
            ModelEvent::Usage(usage) => self.start(usage),
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

    fn start(&mut self, usage: &Usage) {
        self.started = true;
        let usage = json!({"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
                           "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0});
        let message = json!({"id": "msg_scripted", "type": "message", "role": "assistant", "model": self.model,
                             "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage});
        self.send("message_start", &json!({"type": "message_start", "message": message}));
        self.send("ping", &json!({"type": "ping"}));
    }

    fn block(&mut self, kind: Kind, content: &Value) {
        if self.open == Some(kind) && kind != Kind::Call {
            return;
        }
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
        let usage = json!({"output_tokens": self.output_tokens});
        self.send(
            "message_delta",
            &json!({"type": "message_delta", "delta": delta, "usage": usage}),
        );
        self.send("message_stop", &json!({"type": "message_stop"}));
    }

    fn send(&mut self, name: &str, data: &Value) {
        self.frames
            .push(Frame::Event(format!("event: {name}\ndata: {data}\n\n")));
    }
}
