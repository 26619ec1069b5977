//! What is said to the command line, each a line.

use serde_json::{Value, json};

/// A message of the user. Of one with an id it is said when it is begun with.
pub fn user(content: &Value, id: Option<&str>) -> String {
    let mut message = json!({"type": "user", "message": {"role": "user", "content": content},
        "parent_tool_use_id": null, "session_id": ""});
    if let Some(id) = id {
        message["uuid"] = id.into();
    }
    line(&message)
}

/// The wish that it stops where it is.
pub fn interrupt() -> String {
    request("stop", &json!({"subtype": "interrupt"}))
}

/// What a spare is asked for so that it has done once what a first turn does: to name a conversation, for which it calls a
/// model, and to say what it would send. Neither becomes part of its session; both are answered without a claim.
pub(super) fn rehearsal() -> [(&'static str, Value); 2] {
    [
        (
            "title",
            json!({"subtype": "generate_session_title", "description": "a rehearsal", "persist": false}),
        ),
        ("context", json!({"subtype": "get_context_usage", "detail": "summary"})),
    ]
}

/// A request of this name.
pub(super) fn request(id: &str, request: &Value) -> String {
    line(&json!({"type": "control_request", "request_id": id, "request": request}))
}

/// The answer to a line that asks for what only a person at a terminal could answer, and waits until it hears something.
pub fn refusal(asked: &Value) -> String {
    let response = json!({"subtype": "error", "request_id": asked["request_id"], "error": "nobody is here to answer"});
    line(&json!({"type": "control_response", "response": response}))
}

fn line(value: &Value) -> String {
    value.to_string() + "\n"
}
