//! Transcripts of the wire, read whole and in every way they can be cut.

use bytes::Bytes;
use common::message::Part;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::json;

use super::*;
use crate::model::Answer;
use crate::model::answer::Finished;
use crate::model::error::Reason;
use crate::model::sse::decode;
use crate::model::wire::{self, Wire};

/// The events of these chunks of bytes, and how they ended.
fn read(chunks: Vec<&[u8]>) -> (Vec<ModelEvent>, Option<Error>) {
    let chunks = chunks.into_iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
    let events = decode(
        stream::iter(chunks.collect::<Vec<_>>()),
        wire::Decoder::new(Wire::OpenAi),
    );
    let events: Vec<_> = events.collect().now_or_never().unwrap();
    let mut good = Vec::new();
    for event in events {
        match event {
            Ok(event) => good.push(event),
            Err(error) => return (good, Some(error)),
        }
    }
    (good, None)
}

fn transcript(chunks: &[Value]) -> String {
    let chunks = chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
    chunks.collect::<String>() + "data: [DONE]\n\n"
}

fn delta(delta: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}], "usage": null})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn piece(index: u64, id: Option<&str>, name: Option<&str>, arguments: &str) -> Value {
    let mut call = json!({"index": index, "function": {"arguments": arguments}});
    if let Some(id) = id {
        call["id"] = json!(id);
        call["type"] = json!("function");
    }
    if let Some(name) = name {
        call["function"]["name"] = json!(name);
    }
    delta(&json!({"tool_calls": [call]}))
}

/// Reasoning, text beyond ASCII, two calls whose pieces come mixed, usage on a chunk of its own.
fn whole() -> String {
    transcript(&[
        delta(&json!({"role": "assistant", "content": ""})),
        delta(&json!({"reasoning_content": "Let me see."})),
        delta(&json!({"content": "Grüße, "})),
        delta(&json!({"content": "世界 🌱\nnext"})),
        piece(0, Some("a"), Some("bash"), ""),
        piece(1, Some("b"), Some("python"), "{\"code\": "),
        piece(0, None, None, "{\"command\": \"ls\"}"),
        piece(1, None, None, "\"1\"}"),
        finish("tool_calls"),
        json!({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 16}, "completion_tokens_details": {"reasoning_tokens": 4}}}),
    ])
}

fn put_together(text: &str) -> Finished {
    let (events, error) = read(vec![text.as_bytes()]);
    assert!(error.is_none(), "{error:?}");
    let mut answer = Answer::new("openai");
    for event in events {
        answer.push(event);
    }
    answer.finish()
}

fn call(id: &str, name: &str, input: Value) -> Part {
    Part::ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        input,
    }
}

#[test]
fn a_whole_answer_is_put_together() {
    let finished = put_together(&whole());
    assert_eq!(finished.stop_reason, Some(StopReason::ToolUse));
    assert_eq!(finished.faults, []);
    assert_eq!(
        finished.parts[1..],
        [
            Part::text("Grüße, 世界 🌱\nnext"),
            call("a", "bash", json!({"command": "ls"})),
            call("b", "python", json!({"code": "1"})),
        ]
    );
    let expected = Usage {
        input_tokens: 20,
        cached_input_tokens: 16,
        output_tokens: 9,
        reasoning_tokens: 4,
        ..Usage::default()
    };
    assert_eq!(finished.usage, expected);
}

#[test]
fn reasoning_that_only_the_total_has_was_written_too() {
    let reported = json!({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
        "completion_tokens_details": {"reasoning_tokens": 94}});
    let of_xai = usage(&reported);
    assert_eq!(
        (of_xai.input_tokens, of_xai.output_tokens, of_xai.reasoning_tokens),
        (32, 103, 94)
    );
    let included = usage(&json!({"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135}));
    assert_eq!(included.output_tokens, 103);
}

#[test]
fn the_chunks_of_bytes_do_not_matter() {
    let whole = whole();
    let expected = read(vec![whole.as_bytes()]).0;
    for at in 0..whole.len() {
        let (head, tail) = whole.as_bytes().split_at(at);
        let (events, error) = read(vec![head, tail]);
        assert!(error.is_none() && events == expected, "cut at {at}: {error:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_is_an_error_wherever_it_does() {
    let whole = whole();
    let over = whole.find("data: {\"choices\":[],").unwrap();
    for at in (0..over).filter(|at| whole.is_char_boundary(*at)) {
        let (events, error) = read(vec![&whole.as_bytes()[..at]]);
        let has_ended = events.iter().any(|event| matches!(event, ModelEvent::End { .. }));
        let has_reason = events
            .iter()
            .any(|event| matches!(event, ModelEvent::ToolCallEnd { .. }));
        assert_eq!(has_ended, error.is_none(), "cut at {at}");
        assert_eq!(has_ended, has_reason, "cut at {at}: the reason to stop is enough");
    }
}

#[test]
fn usage_on_the_chunk_with_the_reason_to_stop_counts_and_a_repeated_one_is_not_added() {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
    let mut last = finish("stop");
    last["usage"] = usage.clone();
    let text = transcript(&[
        delta(&json!({"content": "hi"})),
        last,
        json!({"choices": [], "usage": usage}),
    ]);
    let finished = put_together(&text);
    assert_eq!((finished.usage.input_tokens, finished.usage.output_tokens), (3, 2));
    assert_eq!(finished.stop_reason, Some(StopReason::EndTurn));
}

#[test]
fn calls_that_come_whole_with_one_index_are_told_apart_by_their_ids() {
    let text = transcript(&[
        piece(0, Some("a"), Some("bash"), "{\"command\": \"1\"}"),
        piece(0, Some("b"), Some("bash"), "{\"command\": \"2\"}"),
        finish("stop"),
    ]);
    let finished = put_together(&text);
    let expected = [
        call("a", "bash", json!({"command": "1"})),
        call("b", "bash", json!({"command": "2"})),
    ];
    assert_eq!(finished.parts, expected);
    assert_eq!(finished.stop_reason, Some(StopReason::ToolUse), "although it said stop");
}

#[test]
fn an_id_that_is_repeated_with_every_piece_begins_no_other_call() {
    let text = transcript(&[
        piece(0, Some("a"), Some("bash"), "{\"command\":"),
        piece(0, Some("a"), None, " \"1\"}"),
        finish("tool_calls"),
    ]);
    assert_eq!(put_together(&text).parts, [call("a", "bash", json!({"command": "1"}))]);
}

#[test]
fn a_call_without_an_id_gets_one_and_arguments_may_be_an_object() {
    let whole = json!({"tool_calls": [{"function": {"name": "bash", "arguments": {"command": "ls"}}}]});
    let text = transcript(&[delta(&whole), finish("stop")]);
    assert_eq!(
        put_together(&text).parts,
        [call("call_0", "bash", json!({"command": "ls"}))]
    );
}

#[test]
fn the_call_that_was_cut_at_the_most_tokens_is_there_with_what_is_wrong_with_it() {
    let text = transcript(&[
        piece(0, Some("a"), Some("bash"), "{\"command\": \"1\"}"),
        piece(1, Some("b"), Some("bash"), "{\"comm"),
        finish("length"),
    ]);
    let finished = put_together(&text);
    let expected = [
        call("a", "bash", json!({"command": "1"})),
        call("b", "bash", json!({"unreadable_input": "{\"comm"})),
    ];
    assert_eq!(finished.parts, expected);
    assert_eq!(finished.stop_reason, Some(StopReason::MaxTokens));
    assert!(
        matches!(&finished.faults[..], [(id, what)] if id == "b" && what.contains("all the tokens")),
        "{:?}",
        finished.faults
    );
}

#[test]
fn an_error_in_the_middle_is_a_refusal() {
    let error = json!({"error": {"message": "overloaded", "type": "server_error", "code": 503}});
    let (events, error) = read(vec![transcript(&[delta(&json!({"content": "so"})), error]).as_bytes()]);
    assert_eq!(events.len(), 1);
    match error {
        Some(Error::Refused(refusal)) => assert_eq!(refusal.reason, Reason::Overloaded),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_json_is_malformed() {
    let (_, error) = read(vec![b"data: <html>\n\n"]);
    assert!(matches!(error, Some(Error::Malformed { .. })), "{error:?}");
}

#[test]
fn nonsense_in_usage_never_overflows() {
    let nonsense = usage(&json!({"prompt_tokens": 1, "completion_tokens": -3,
        "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 9}}));
    assert_eq!(
        (nonsense.cached_input_tokens, nonsense.cache_write_short_tokens),
        (1, 0)
    );
    assert_eq!(nonsense.output_tokens, 0);
}
