//! The rules of both wires for the messages of a request, as their documentation has them.

use serde_json::Value;

/// What a real server would refuse.
pub(super) fn faults(request: &Value) -> Vec<String> {
    let Some(messages) = request["messages"].as_array() else {
        return vec!["no messages".to_owned()];
    };
    if request["path"] == "/v1/messages" {
        anthropic(messages)
    } else {
        openai(messages)
    }
}

fn anthropic(messages: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if role != ["user", "assistant"][at % 2] {
            faults.push(format!("{at}: {role} is out of turn"));
        }
        let blocks = message["content"].as_array().map_or(&[][..], Vec::as_slice);
        let ids = |kind: &str, field: &str| -> Vec<&str> {
            let of_kind = blocks.iter().filter(|block| block["type"] == kind);
            of_kind.filter_map(|block| block[field].as_str()).collect()
        };
        let results = ids("tool_result", "tool_use_id");
        if results != open {
            faults.push(format!("{at}: results {results:?} of calls {open:?}"));
        }
        let first = blocks.iter().take(results.len());
        if blocks.is_empty() || first.into_iter().any(|block| block["type"] != "tool_result") {
            faults.push(format!("{at}: empty, or results behind other words"));
        }
        let is_blank = |block: &Value| block["type"] == "text" && block["text"].as_str().is_none_or(is_blank);
        if blocks.iter().any(is_blank) {
            faults.push(format!("{at}: a blank text"));
        }
        open = ids("tool_use", "id");
    }
    if !open.is_empty() || messages.last().is_none_or(|last| last["role"] != "user") {
        faults.push("the last word is not the user's".to_owned());
    }
    faults
}

fn openai(messages: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if role == "tool" {
            let id = message["tool_call_id"].as_str().unwrap_or_default();
            match open.iter().position(|one| *one == id) {
                Some(place) => drop(open.remove(place)),
                None => faults.push(format!("{at}: a result of no call, {id:?}")),
            }
            continue;
        }
        if !open.is_empty() {
            faults.push(format!("{at}: {open:?} have no results"));
        }
        let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        let is_json = |call: &Value| {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
            serde_json::from_str::<Value>(arguments).is_ok_and(|arguments| arguments.is_object())
        };
        if !calls.iter().all(is_json) {
            faults.push(format!("{at}: arguments that are no object"));
        }
        let is_empty = message["content"].is_null() || message["content"].as_str().is_some_and(is_blank);
        if is_empty && calls.is_empty() {
            faults.push(format!("{at}: nothing is said"));
        }
        open = calls.iter().filter_map(|call| call["id"].as_str()).collect();
    }
    let last = messages.last().map(|last| last["role"].as_str().unwrap_or_default());
    if !open.is_empty() || !matches!(last, Some("user" | "tool")) {
        faults.push("the last word is not the user's".to_owned());
    }
    faults
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
