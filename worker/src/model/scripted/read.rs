//! Reading what clients of either wire send, as the real servers do: what they refuse is refused.

use std::collections::BTreeSet;

use chrono::DateTime;
use common::message::{Message, Part, Role};
use serde_json::Value;

use crate::model::wire::Wire;
use crate::model::{ModelRequest, ToolDefinition};

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The model.
    pub model: String,
    /// The request.
    pub request: ModelRequest,
    /// Whether the answer is to be streamed.
    pub streams: bool,
    /// Whether a stream is to end with its usage: OpenAI's clients ask for it.
    pub wants_usage: bool,
}

/// Reads a request.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn read(wire: Wire, body: &[u8]) -> Result<Asked, String> {
    let body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let model = body["model"].as_str().ok_or("model: field required")?;
    let messages = body["messages"].as_array().ok_or("messages: field required")?;
    let most = ["max_tokens", "max_completion_tokens"];
    let most = most.iter().find_map(|name| body[*name].as_u64());
    let mut request = ModelRequest::of(Vec::new(), most.and_then(|n| n.try_into().ok()).unwrap_or(u32::MAX));
    request.tools = body["tools"].as_array().into_iter().flatten().map(tool).collect();
    match wire {
        Wire::Anthropic => {
            request.system = text_of(&body["system"]);
            for message in messages {
                // Instructions in the middle of a conversation, as newer clients send them.
                if message["role"] == "system" {
                    request.system = format!("{}\n{}", request.system, text_of(&message["content"]));
                } else {
                    request.messages.push(anthropic(message)?);
                }
            }
        }
        Wire::OpenAi => openai(messages, &mut request)?,
    }
    request.messages = merged(request.messages);
    refuse_what_the_real_one_refuses(&request.messages)?;
    Ok(Asked {
        model: model.to_owned(),
        request,
        streams: body["stream"].as_bool().unwrap_or(false),
        wants_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
    })
}

fn tool(tool: &Value) -> ToolDefinition {
    let of = if tool["function"].is_object() {
        &tool["function"]
    } else {
        tool
    };
    let word = |name: &str| of[name].as_str().unwrap_or_default().to_owned();
    let schema = if of["parameters"].is_object() {
        "parameters"
    } else {
        "input_schema"
    };
    ToolDefinition {
        name: word("name"),
        description: word("description"),
        input_schema: of[schema].clone(),
    }
}

/// A text, or the texts of a list of blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn anthropic(message: &Value) -> Result<Message, String> {
    let role = match message["role"].as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => return Err(format!("messages: unexpected role {other:?}")),
    };
    let parts = match &message["content"] {
        Value::String(text) => vec![Part::text(text)],
        Value::Array(blocks) => blocks.iter().map(block).collect::<Result<_, _>>()?,
        _ => return Err("messages: content must be a string or a list".to_owned()),
    };
    Ok(Message::new(role, parts, DateTime::UNIX_EPOCH))
}

fn block(block: &Value) -> Result<Part, String> {
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
            output: text_of(&block["content"]),
        }),
        Some(kind @ ("image" | "document")) => Ok(file(kind, block["source"]["media_type"].as_str())),
        other => Err(format!("messages: unexpected block {other:?}")),
    }
}

fn file(kind: &str, media_type: Option<&str>) -> Part {
    Part::File {
        path: kind.to_owned(),
        media_type: media_type.map(str::to_owned),
        bytes: None,
    }
}

fn openai(messages: &[Value], request: &mut ModelRequest) -> Result<(), String> {
    for message in messages {
        let content = &message["content"];
        let (role, parts) = match message["role"].as_str() {
            Some("system" | "developer") => {
                request.system = text_of(content);
                continue;
            }
            Some("user") => (Role::User, said(content)?),
            Some("assistant") => (Role::Assistant, answered(message)?),
            Some("tool") => {
                let result = Part::ToolResult {
                    tool_call_id: message["tool_call_id"].as_str().unwrap_or_default().to_owned(),
                    is_error: false,
                    output: text_of(content),
                };
                (Role::User, vec![result])
            }
            other => return Err(format!("messages: unexpected role {other:?}")),
        };
        request.messages.push(Message::new(role, parts, DateTime::UNIX_EPOCH));
    }
    Ok(())
}

fn said(content: &Value) -> Result<Vec<Part>, String> {
    match content {
        Value::String(text) => Ok(vec![Part::text(text)]),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part["type"].as_str() {
                Some("text") => Ok(Part::text(part["text"].as_str().unwrap_or_default())),
                Some(kind @ ("image_url" | "file" | "input_audio")) => Ok(file(kind, None)),
                other => Err(format!("messages: unexpected part {other:?}")),
            })
            .collect(),
        _ => Err("messages: content must be a string or a list".to_owned()),
    }
}

fn answered(message: &Value) -> Result<Vec<Part>, String> {
    let text = text_of(&message["content"]);
    let mut parts: Vec<Part> = (!text.is_empty()).then(|| Part::text(text)).into_iter().collect();
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let arguments = word(&call["function"]["arguments"]);
        parts.push(Part::ToolCall {
            id: word(&call["id"]),
            name: word(&call["function"]["name"]),
            input: serde_json::from_str(&arguments).map_err(|error| format!("tool_calls: arguments: {error}"))?,
        });
    }
    Ok(parts)
}

/// Messages of one role that follow each other are one, as the real servers hold.
fn merged(messages: Vec<Message>) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match all.last_mut() {
            Some(last) if last.role == message.role => last.parts.extend(message.parts),
            _ => all.push(message),
        }
    }
    all
}

fn refuse_what_the_real_one_refuses(messages: &[Message]) -> Result<(), String> {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for message in messages {
        let answered: BTreeSet<&str> = message.parts.iter().filter_map(answers).collect();
        if answered != open {
            return Err(
                "messages: every tool call needs its result directly after, and every result its call".to_owned(),
            );
        }
        open = message.tool_calls().map(|(id, _)| id).collect();
    }
    match messages.last() {
        Some(Message { role: Role::User, .. }) => Ok(()),
        _ => Err("messages: the conversation must end with a user message".to_owned()),
    }
}

fn answers(part: &Part) -> Option<&str> {
    match part {
        Part::ToolResult { tool_call_id, .. } => Some(tool_call_id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parts(wire: Wire, messages: &Value) -> Result<Vec<Vec<Part>>, String> {
        let body = json!({"model": "demo", "max_tokens": 9, "messages": messages});
        let asked = read(wire, body.to_string().as_bytes())?;
        Ok(asked
            .request
            .messages
            .into_iter()
            .map(|message| message.parts)
            .collect())
    }

    #[test]
    fn both_wires_say_the_same_conversation() {
        let anthropic = json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "so"},
                {"type": "tool_use", "id": "c", "name": "bash", "input": {"command": "ls"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "a"}]}]},
            {"role": "user", "content": "and?"},
        ]);
        let openai = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "so", "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "bash", "arguments": "{\"command\": \"ls\"}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "a"},
            {"role": "user", "content": "and?"},
        ]);
        assert_eq!(
            parts(Wire::Anthropic, &anthropic).unwrap(),
            parts(Wire::OpenAi, &openai).unwrap()
        );
    }

    #[test]
    fn a_call_without_its_result_is_refused_on_both() {
        let anthropic = json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "b", "input": {}}]},
            {"role": "user", "content": "next"}]);
        assert!(parts(Wire::Anthropic, &anthropic).is_err());
        let openai = json!([{"role": "tool", "tool_call_id": "c", "content": "of nothing"}]);
        assert!(parts(Wire::OpenAi, &openai).is_err());
    }
}
