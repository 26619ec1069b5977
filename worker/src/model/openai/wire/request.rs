//! A request as JSON.

use common::message::{Message, Part, Role};
use serde_json::{Value, json};

use crate::model::wire::request::{add_options, file, said};
use crate::model::{ModelRequest, ToolDefinition};

/// How a server differs from others of the wire.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Whether it is OpenAI's own server, which wants its own name for the most tokens of an answer.
    pub is_public: bool,
}

impl Dialect {
    /// What a request calls the most tokens of its answer.
    pub fn limit_name(self) -> &'static str {
        if self.is_public {
            "max_completion_tokens"
        } else {
            "max_tokens"
        }
    }
}

/// The body of `POST /v1/chat/completions` for `model`, streaming.
pub fn body(model: &str, request: &ModelRequest, dialect: Dialect) -> Vec<u8> {
    let system = request
        .instructions()
        .map(|system| json!({"role": "system", "content": system}));
    let messages: Vec<Value> = system
        .into_iter()
        .chain(request.messages.iter().flat_map(|message| messages(message, request)))
        .collect();
    let mut body = json!({
        "model": model,
        "stream": true,
        "stream_options": {"include_usage": true},
        "messages": messages,
    });
    body[dialect.limit_name()] = json!(request.max_output_tokens);
    add_options(&mut body, request, tool, "stop");
    body.to_string().into_bytes()
}

fn tool(tool: &ToolDefinition) -> Value {
    let function = json!({"name": tool.name, "description": tool.description, "parameters": tool.input_schema});
    json!({"type": "function", "function": function})
}

fn messages(message: &Message, request: &ModelRequest) -> Vec<Value> {
    match message.role {
        Role::Assistant => assistant(message).into_iter().collect(),
        Role::User => user(message, request),
    }
}

/// What the model said: one text and its calls. Its reasoning means nothing to this wire.
fn assistant(message: &Message) -> Option<Value> {
    let text = message.text();
    let calls: Vec<Value> = message.parts.iter().filter_map(call).collect();
    if text.is_empty() && calls.is_empty() {
        return None;
    }
    let mut sent = json!({"role": "assistant", "content": if text.is_empty() { Value::Null } else { text.into() }});
    if !calls.is_empty() {
        sent["tool_calls"] = calls.into();
    }
    Some(sent)
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

/// Results first, each a message of its own as the wire wants it directly after the calls; then what the user said.
fn user(message: &Message, request: &ModelRequest) -> Vec<Value> {
    let mut sent: Vec<Value> = message.parts.iter().filter_map(result).collect();
    let content: Vec<Value> = message.parts.iter().filter_map(|part| block(part, request)).collect();
    let is_text = |part: &Value| part["type"] == "text";
    match &content[..] {
        [] => {}
        [one] if is_text(one) => sent.push(json!({"role": "user", "content": one["text"]})),
        _ => sent.push(json!({"role": "user", "content": content})),
    }
    sent
}

fn result(part: &Part) -> Option<Value> {
    let Part::ToolResult {
        tool_call_id,
        is_error,
        output,
    } = part
    else {
        return None;
    };
    // The wire has no mark for a tool that failed.
    let content = if *is_error {
        format!("Error: {output}")
    } else {
        output.clone()
    };
    Some(json!({"role": "tool", "tool_call_id": tool_call_id, "content": content}))
}

fn block(part: &Part, request: &ModelRequest) -> Option<Value> {
    match part {
        Part::Text { text } => Some(said(text)),
        Part::File { path, media_type, .. } => Some(file(
            request,
            path,
            media_type.as_deref(),
            |image| json!({"type": "image_url", "image_url": {"url": image.data_url()}}),
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Attachment;
    use chrono::DateTime;
    use common::message::Role;

    const OWN: Dialect = Dialect { is_public: true };

    fn sent(request: &ModelRequest, dialect: Dialect) -> Value {
        serde_json::from_slice(&body("gpt-x", request, dialect)).unwrap()
    }

    fn message(role: Role, parts: Vec<Part>) -> Message {
        Message::new(role, parts, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn what_is_not_set_is_not_sent_and_the_most_tokens_have_the_servers_name() {
        let request = ModelRequest::of(vec![Message::user("hi", DateTime::UNIX_EPOCH)], 100);
        let expected = json!({"model": "gpt-x", "stream": true, "stream_options": {"include_usage": true},
            "max_completion_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
        assert_eq!(sent(&request, OWN), expected);
        let local = sent(&request, Dialect { is_public: false });
        assert_eq!(
            (&local["max_tokens"], local.get("max_completion_tokens")),
            (&json!(100), None)
        );
    }

    #[test]
    fn every_part_has_its_place() {
        let asked = vec![
            Part::Reasoning {
                text: "hm".to_owned(),
                signature: Some("s".to_owned()),
                redacted: None,
                provider: Some("anthropic".to_owned()),
            },
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
        let file = |path: &str, kind: &str| Part::File {
            path: path.to_owned(),
            media_type: Some(kind.to_owned()),
            bytes: None,
        };
        let answered = vec![
            result("c1", false, ""),
            result("c2", true, "no"),
            Part::text("and this"),
            file("a.png", "image/png"),
            file("b.csv", "text/csv"),
        ];
        let mut request = ModelRequest::of(vec![message(Role::Assistant, asked), message(Role::User, answered)], 5);
        request.system = "be brief".to_owned();
        request.temperature = Some(0.5);
        request.stop_sequences = vec!["END".to_owned()];
        request.attachments.insert(
            "a.png".to_owned(),
            Attachment {
                media_type: "image/png".to_owned(),
                data: vec![1, 2, 3].into(),
            },
        );
        request.tools = vec![ToolDefinition {
            name: "bash".to_owned(),
            description: "runs".to_owned(),
            input_schema: json!({"type": "object"}),
        }];
        let call =
            json!({"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{\"command\":\"ls\"}"}});
        let tool = json!({"type": "function",
            "function": {"name": "bash", "description": "runs", "parameters": {"type": "object"}}});
        assert_eq!(
            sent(&request, OWN),
            json!({
                "model": "gpt-x", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5,
                "stop": ["END"], "max_completion_tokens": 5, "tools": [tool],
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "assistant", "content": "look", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "c1", "content": ""},
                    {"role": "tool", "tool_call_id": "c2", "content": "Error: no"},
                    {"role": "user", "content": [
                        {"type": "text", "text": "and this"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQID"}},
                        {"type": "text", "text": "[File in the workspace: b.csv (text/csv)]"},
                    ]},
                ],
            })
        );
    }

    #[test]
    fn a_call_without_a_word_has_null_for_its_text() {
        let call = Part::ToolCall {
            id: "c".to_owned(),
            name: "bash".to_owned(),
            input: json!({}),
        };
        let request = ModelRequest::of(vec![message(Role::Assistant, vec![call])], 5);
        assert_eq!(sent(&request, OWN)["messages"][0]["content"], Value::Null);
    }
}
