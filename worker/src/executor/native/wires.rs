//! Whatever a conversation went through, both wires take it: the rules of each format, checked on the bodies that are sent.

use std::collections::BTreeSet;

use chrono::DateTime;
use common::message::{Message, Part, Role, repair};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::openai::wire::request::Dialect;
use crate::model::{ModelRequest, anthropic, openai};

/// What Anthropic Messages refuses in `messages`, as its documentation says.
fn anthropic_faults(body: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    let messages = body["messages"].as_array().unwrap();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap();
        if role != ["user", "assistant"][at % 2] {
            faults.push(format!("{at}: {role} is out of turn"));
        }
        let content = message["content"].as_array().unwrap();
        if content.is_empty() {
            faults.push(format!("{at}: no content"));
        }
        let of_type = |kind: &'static str| content.iter().filter(move |block| block["type"] == kind);
        let results: Vec<String> = of_type("tool_result")
            .map(|block| text(&block["tool_use_id"]))
            .collect();
        if results != open {
            faults.push(format!("{at}: results {results:?} for calls {open:?}"));
        }
        if !content
            .iter()
            .take(results.len())
            .all(|block| block["type"] == "tool_result")
        {
            faults.push(format!("{at}: results do not come first"));
        }
        open = of_type("tool_use").map(|block| text(&block["id"])).collect();
        for block in content {
            let is_blank = block["type"] == "text" && text(&block["text"]).trim().is_empty();
            let is_odd = block["type"] == "tool_use" && !block["input"].is_object();
            if is_blank || is_odd {
                faults.push(format!("{at}: {block}"));
            }
        }
        for id in &open {
            if !seen.insert(id.clone()) || !is_id(id) {
                faults.push(format!("{at}: the id {id:?}"));
            }
        }
        if role == "assistant" && content.last().is_some_and(|block| block["type"] == "thinking") {
            faults.push(format!("{at}: ends in thinking"));
        }
    }
    if messages.len().is_multiple_of(2) || !open.is_empty() {
        faults.push("the last word is not the user's".to_owned());
    }
    faults
}

/// What Chat Completions refuses.
fn openai_faults(body: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: Vec<String> = Vec::new();
    for (at, message) in body["messages"].as_array().unwrap().iter().enumerate() {
        let role = message["role"].as_str().unwrap();
        if role == "tool" {
            let id = text(&message["tool_call_id"]);
            if open.first() != Some(&id) {
                faults.push(format!("{at}: a result for {id:?}, wanted {open:?}"));
            }
            open.retain(|wanted| *wanted != id);
            continue;
        }
        if !open.is_empty() {
            faults.push(format!("{at}: no result for {open:?}"));
        }
        let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        for call in &calls {
            let arguments = serde_json::from_str::<Value>(&text(&call["function"]["arguments"]));
            if call["type"] != "function" || !arguments.is_ok_and(|arguments| arguments.is_object()) {
                faults.push(format!("{at}: {call}"));
            }
        }
        open = calls.iter().map(|call| text(&call["id"])).collect();
        let has_content =
            !matches!(&message["content"], Value::Null) && message["content"] != "" && message["content"] != json!([]);
        if calls.is_empty() && !has_content {
            faults.push(format!("{at}: says nothing"));
        }
    }
    if !open.is_empty() {
        faults.push(format!("no result for {open:?}"));
    }
    faults
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn any_part() -> impl Strategy<Value = Part> {
    let id = prop_oneof!["[a-c]", Just(String::new()), Just("ü/1".to_owned()), "[a-z]{70}"];
    prop_oneof![
        3 => "[a-z ]{0,5}".prop_map(Part::text),
        1 => ("[a-z]{0,5}", proptest::option::of("[a-z]{3}"), any::<bool>()).prop_map(|(text, signature, is_theirs)| {
            let provider = is_theirs.then(|| "anthropic".to_owned());
            Part::Reasoning { text, signature, redacted: None, provider }
        }),
        3 => (id.clone(), any::<bool>()).prop_map(|(id, is_object)| {
            let input = if is_object { json!({"a": 1}) } else { json!("odd") };
            Part::ToolCall { id, name: "bash".to_owned(), input }
        }),
        3 => (id, "[a-z ]{0,3}").prop_map(|(tool_call_id, output)| Part::ToolResult { tool_call_id, is_error: false, output }),
        1 => Just(Part::File { path: "a.txt".to_owned(), media_type: None, bytes: None }),
        1 => Just(Part::Status { text: "cancelled".to_owned() }),
    ]
}

fn any_history() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![Just(Role::User), Just(Role::Assistant)];
    let message = (role, proptest::collection::vec(any_part(), 0..4))
        .prop_map(|(role, parts)| Message::new(role, parts, DateTime::UNIX_EPOCH));
    proptest::collection::vec(message, 0..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn both_wires_take_whatever_is_left_of_a_conversation(history in any_history()) {
        let next = Message::user("next", DateTime::UNIX_EPOCH);
        let messages = repair(history.into_iter().chain([next]).collect());
        let request = ModelRequest::of(messages, 100);
        let body: Value = serde_json::from_slice(&anthropic::wire::request::body("m", &request)).unwrap();
        prop_assert_eq!(anthropic_faults(&body), Vec::<String>::new(), "{}", body);
        for is_public in [true, false] {
            let dialect = Dialect { is_public };
            let body: Value = serde_json::from_slice(&openai::wire::request::body("m", &request, dialect)).unwrap();
            prop_assert_eq!(openai_faults(&body), Vec::<String>::new(), "{}", body);
        }
    }
}
