//! A request as JSON.

use common::message::{Message, Part, Role};
use serde_json::{Value, json};

use crate::model::wire::request::{add_options, file, said};
use crate::model::{ModelRequest, ToolDefinition};

/// The body of `POST /v1/messages` for `model`, streaming.
pub fn body(model: &str, request: &ModelRequest) -> Vec<u8> {
    let messages: Vec<Value> = request
        .messages
        .iter()
        .filter_map(|sent| message(sent, request))
        .collect();
    let mut body = json!({
        "model": model,
        "max_tokens": request.max_output_tokens,
        "stream": true,
        "messages": messages,
    });
    if let Some(system) = request.instructions() {
        body["system"] = json!(system);
    }
    add_options(&mut body, request, tool, "stop_sequences");
    body.to_string().into_bytes()
}

fn tool(tool: &ToolDefinition) -> Value {
    json!({"name": tool.name, "description": tool.description, "input_schema": tool.input_schema})
}

fn message(message: &Message, request: &ModelRequest) -> Option<Value> {
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let content: Vec<Value> = message.parts.iter().filter_map(|part| block(part, request)).collect();
    (!content.is_empty()).then(|| json!({"role": role, "content": content}))
}

fn block(part: &Part, request: &ModelRequest) -> Option<Value> {
    match part {
        Part::Text { text } => Some(said(text)),
        Part::Reasoning {
            text,
            signature,
            redacted,
            provider,
        } => {
            // What another provider thought, or what broke off, would be refused.
            if provider.as_deref() != Some("anthropic") {
                None
            } else if let Some(data) = redacted {
                Some(json!({"type": "redacted_thinking", "data": data}))
            } else {
                signature
                    .as_ref()
                    .map(|s| json!({"type": "thinking", "thinking": text, "signature": s}))
            }
        }
        Part::ToolCall { id, name, input } => Some(json!({"type": "tool_use", "id": id, "name": name, "input": input})),
        Part::ToolResult {
            tool_call_id,
            is_error,
            output,
        } => {
            let mut block = json!({"type": "tool_result", "tool_use_id": tool_call_id});
            // An empty or blank text is refused; no content at all is not.
            if !output.trim().is_empty() {
                block["content"] = json!(output);
            }
            if *is_error {
                block["is_error"] = json!(true);
            }
            Some(block)
        }
        Part::File { path, media_type, .. } => Some(file(request, path, media_type.as_deref(), |image| {
            let source = json!({"type": "base64", "media_type": image.media_type, "data": image.base64()});
            json!({"type": "image", "source": source})
        })),
        Part::Status { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Attachment;
    use chrono::DateTime;

    fn request(messages: Vec<Message>) -> ModelRequest {
        ModelRequest::of(messages, 100)
    }

    fn sent(request: &ModelRequest) -> Value {
        serde_json::from_slice(&body("claude-x", request)).unwrap()
    }

    #[test]
    fn what_is_not_set_is_not_sent() {
        let sent = sent(&request(vec![Message::user("hi", DateTime::UNIX_EPOCH)]));
        assert_eq!(
            sent,
            json!({"model": "claude-x", "max_tokens": 100, "stream": true,
                   "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]})
        );
    }

    fn thought(provider: &str, signature: Option<&str>, redacted: Option<&str>) -> Part {
        Part::Reasoning {
            text: "hm".to_owned(),
            signature: signature.map(str::to_owned),
            redacted: redacted.map(str::to_owned),
            provider: Some(provider.to_owned()),
        }
    }

    #[test]
    fn every_part_has_its_block() {
        let asked = vec![
            thought("anthropic", Some("s"), None),
            thought("anthropic", None, Some("r")),
            thought("anthropic", None, None),
            thought("openai", Some("s"), None),
            Part::text("look"),
            Part::ToolCall {
                id: "c1".to_owned(),
                name: "bash".to_owned(),
                input: json!({"command": "ls"}),
            },
        ];
        let result = |id: &str, is_error, output: &str| Part::ToolResult {
            tool_call_id: id.to_owned(),
            is_error,
            output: output.to_owned(),
        };
        let file = Part::File {
            path: "a.csv".to_owned(),
            media_type: Some("text/csv".to_owned()),
            bytes: None,
        };
        let image = Part::File {
            path: "a.png".to_owned(),
            media_type: None,
            bytes: None,
        };
        let answered = vec![result("c1", false, "\n"), result("c2", true, "no"), file, image];
        let at = DateTime::UNIX_EPOCH;
        let mut request = request(vec![
            Message::new(Role::Assistant, asked, at),
            Message::new(Role::User, answered, at),
        ]);
        let png = Attachment {
            media_type: "image/png".to_owned(),
            data: vec![1, 2, 3].into(),
        };
        request.attachments.insert("a.png".to_owned(), png);
        request.system = "be brief".to_owned();
        request.temperature = Some(0.5);
        request.stop_sequences = vec!["END".to_owned()];
        request.tools = vec![ToolDefinition {
            name: "bash".to_owned(),
            description: "runs a command".to_owned(),
            input_schema: json!({"type": "object"}),
        }];
        assert_eq!(
            sent(&request),
            json!({
                "model": "claude-x", "max_tokens": 100, "stream": true, "system": "be brief", "temperature": 0.5,
                "stop_sequences": ["END"],
                "tools": [{"name": "bash", "description": "runs a command", "input_schema": {"type": "object"}}],
                "messages": [
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "r"},
                        {"type": "text", "text": "look"},
                        {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "c1"},
                        {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": true},
                        {"type": "text", "text": "[File in the workspace: a.csv (text/csv)]"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQID"}},
                    ]},
                ],
            })
        );
    }
}
