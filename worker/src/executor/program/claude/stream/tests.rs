//! A recorded session of the real command line (2.1.329, its model scripted), beside what becomes of it.

use std::collections::BTreeSet;
use std::sync::Mutex;

use common::clock::Clock;
use common::ids::JobId;
use common::job::event::EventBody;
use common::message::{Message, Part, Role};
use serde_json::Value;

use super::super::super::super::native::EventSink;
use super::*;

const SESSION: &str = include_str!("session.jsonl");

/// Kinds of lines that say nothing which is not said by others, or nothing about the turn.
const PASSED_BY: [&str; 6] = [
    "system thinking_tokens",
    "system task_started",
    "system task_progress",
    "system task_updated",
    "system task_notification",
    "system status",
];

fn lines() -> Vec<Value> {
    SESSION
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The events, the messages and the text of lines.
fn followed(lines: &[Value]) -> (Vec<EventBody>, Vec<Message>, String, Stream) {
    let said = Mutex::new(Vec::new());
    let sink = EventSink::new(|body: EventBody| said.lock().unwrap().push(body));
    let clock = Clock::system();
    let mut transcript = Transcript::new(&sink, &clock, JobId::new());
    let mut stream = Stream::default();
    for line in lines {
        assert_eq!(stream.line(line.to_string().as_bytes(), &mut transcript), None);
    }
    let (messages, text) = transcript.finish(None);
    (said.into_inner().unwrap(), messages, text, stream)
}

/// Blocks of the whole messages of a recording: of the model itself, or of its helpers.
fn blocks(lines: &[Value], kind: &str, is_helper: bool) -> Vec<Value> {
    let wanted = |line: &&Value| line["type"] == kind && line["parent_tool_use_id"].is_string() == is_helper;
    let contents = lines.iter().filter(wanted).map(|line| &line["message"]["content"]);
    contents
        .flat_map(|content| content.as_array().cloned().unwrap_or_default())
        .collect()
}

fn joined(blocks: &[Value], kind: &str) -> String {
    let texts = blocks.iter().filter(|block| block["type"] == kind);
    texts.filter_map(|block| block[kind].as_str()).collect()
}

#[test]
fn everything_that_was_said_and_done_is_told_once() {
    let lines = lines();
    let (events, messages, text, stream) = followed(&lines);
    let assistant = blocks(&lines, "assistant", false);
    let streamed = |wanted: &str| -> String {
        let piece = |body: &EventBody| match (wanted, body) {
            ("text", EventBody::MessageDelta { text }) | ("thinking", EventBody::ReasoningDelta { text }) => {
                Some(text.clone())
            }
            _ => None,
        };
        events.iter().filter_map(piece).collect()
    };
    assert_eq!(streamed("text"), joined(&assistant, "text"));
    assert_eq!(streamed("thinking"), joined(&assistant, "thinking"));

    let calls: Vec<&Value> = assistant.iter().filter(|block| block["type"] == "tool_use").collect();
    let started: Vec<(String, Value)> = events
        .iter()
        .filter_map(|body| match body {
            EventBody::ToolStarted {
                tool_call_id, input, ..
            } => Some((tool_call_id.clone(), input.clone())),
            _ => None,
        })
        .collect();
    assert!(calls.len() > 8, "{calls:#?}");
    let expected: Vec<(String, Value)> = calls
        .iter()
        .map(|call| (call["id"].as_str().unwrap().to_owned(), call["input"].clone()))
        .collect();
    assert_eq!(started, expected);

    let results = blocks(&lines, "user", false);
    let results: BTreeSet<(String, bool)> = results
        .iter()
        .filter(|block| block["type"] == "tool_result")
        .map(|block| {
            (
                block["tool_use_id"].as_str().unwrap().to_owned(),
                block["is_error"] == true,
            )
        })
        .collect();
    let finished: BTreeSet<(String, bool)> = events
        .iter()
        .filter_map(|body| match body {
            EventBody::ToolFinished {
                tool_call_id, is_error, ..
            } => Some((tool_call_id.clone(), *is_error)),
            _ => None,
        })
        .collect();
    assert_eq!(finished, results);
    assert!(
        results.iter().filter(|(_, is_error)| *is_error).count() >= 3,
        "{results:#?}"
    );
    assert_eq!(finished.len(), calls.len());

    assert_eq!(text, "All done.");
    assert_eq!(stream.ending().unwrap().failure(), None);
    assert!(!stream.has_open_tools() && stream.steps() > 5);
    // The history is whole: repairing it puts results in the order of their calls, and adds none.
    let mut history = vec![Message::user("START", Clock::system().now())];
    history.extend(messages);
    let is_result =
        |part: &&Part| matches!(part, Part::ToolResult { output, .. } if output != common::message::MISSING_RESULT);
    let repaired = common::message::repair(history);
    let parts = repaired.iter().flat_map(|message| &message.parts);
    assert_eq!(parts.filter(is_result).count(), calls.len());
}

#[test]
fn a_helper_is_seen_at_the_call_that_began_it() {
    let lines = lines();
    let (events, messages, ..) = followed(&lines);
    let helper: String = events
        .iter()
        .filter_map(|body| match body {
            EventBody::ToolOutput { tool_call_id, text } if tool_call_id == "toolu_6_0" => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert!(
        helper.contains("I am helping.") && helper.contains("[Bash {") && helper.contains("The helper is done."),
        "{helper}"
    );
    let said = messages
        .iter()
        .filter(|message| message.role == Role::Assistant)
        .map(Message::text);
    assert!(!said.collect::<String>().contains("helping"));
    let images = messages.iter().flat_map(|message| &message.parts);
    let image = images.filter(|part| matches!(part, Part::ToolResult { output, .. } if output == "[image]"));
    assert_eq!(image.count(), 1);
}

#[test]
fn no_line_of_it_is_of_an_unknown_kind() {
    for line in lines() {
        let kind = [line["type"].as_str(), line["subtype"].as_str()];
        let kind = kind.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let is_known = PASSED_BY.contains(&kind.as_str())
            || matches!(
                kind.as_str(),
                "stream_event" | "assistant" | "user" | "system init" | "command_lifecycle" | "result success"
            );
        assert!(is_known, "{kind}");
    }
}

#[test]
fn what_was_handed_on_is_begun_with_once() {
    let mut stream = Stream::default();
    let sink = EventSink::new(|_body: EventBody| {});
    let clock = Clock::system();
    let mut transcript = Transcript::new(&sink, &clock, JobId::new());
    for (state, id) in [("queued", "a"), ("started", "a"), ("completed", "a"), ("started", "b")] {
        let line = serde_json::json!({"type": "command_lifecycle", "command_uuid": id, "state": state});
        stream.line(line.to_string().as_bytes(), &mut transcript);
    }
    assert_eq!(stream.begun(), ["a", "b"]);
    assert!(stream.begun().is_empty());
}
