//! Transcripts of the wire, read whole and in every way they can be cut.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::json;

use super::*;
use crate::model::Answer;
use crate::model::error::Reason;
use crate::model::sse::decode;
use common::message::Part;

/// Thinking, text beyond ASCII, two tool calls, a ping, things from the future, and cache fields that come late.
const WHOLE: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","role":"assistant","content":[],"usage":{"input_tokens":10,"output_tokens":1}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: ping
data: {"type":"ping"}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me "}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"see."}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Grüße, "}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"世界 🌱\nnext"}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{}}}

event: content_block_stop
data: {"type":"content_block_stop","index":1}

event: something_new
data: {"type":"something_new","index":7}

event: content_block_start
data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_1","name":"bash","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"command\": \"ec"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"ho hi\"}"}}

event: content_block_stop
data: {"type":"content_block_stop","index":2}

event: content_block_start
data: {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_2","name":"python","input":{"code":"1"}}}

event: content_block_stop
data: {"type":"content_block_stop","index":3}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":10,"cache_read_input_tokens":90,"cache_creation_input_tokens":30,"cache_creation":{"ephemeral_5m_input_tokens":20,"ephemeral_1h_input_tokens":10},"output_tokens":42,"output_tokens_details":{"thinking_tokens":7}}}

event: message_stop
data: {"type":"message_stop"}

"#;

/// All items of a transcript that comes in these chunks. Nothing waits here, so one poll of the whole is enough.
fn read(chunks: Vec<&[u8]>) -> Vec<Result<ModelEvent, Error>> {
    let chunks: Vec<Result<Bytes, Error>> = chunks
        .into_iter()
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    decode(
        stream::iter(chunks),
        crate::model::wire::Decoder::new(crate::model::wire::Wire::Anthropic),
    )
    .collect::<Vec<_>>()
    .now_or_never()
    .expect("a transcript in memory is there at once")
}

fn read_text(text: &str) -> Vec<Result<ModelEvent, Error>> {
    read(vec![text.as_bytes()])
}

fn well(items: Vec<Result<ModelEvent, Error>>) -> Vec<ModelEvent> {
    items.into_iter().map(|item| item.unwrap()).collect()
}

#[test]
fn a_whole_answer_is_read_with_all_its_parts_and_its_usage() {
    let mut answer = Answer::new("anthropic");
    for event in well(read_text(WHOLE)) {
        answer.push(event);
    }
    let finished = answer.finish();
    let call = |id: &str, name: &str, input| Part::ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        input,
    };
    assert_eq!(
        finished.parts,
        [
            Part::Reasoning {
                text: "Let me see.".to_owned(),
                signature: Some("c2ln".to_owned()),
                redacted: None,
                provider: Some("anthropic".to_owned()),
            },
            Part::text("Grüße, 世界 🌱\nnext"),
            call("toolu_1", "bash", json!({"command": "echo hi"})),
            call("toolu_2", "python", json!({"code": "1"})),
        ]
    );
    assert_eq!(finished.faults, []);
    assert_eq!(finished.stop_reason, Some(StopReason::ToolUse));
    let usage = Usage {
        input_tokens: 130,
        cached_input_tokens: 90,
        cache_write_short_tokens: 20,
        cache_write_long_tokens: 10,
        output_tokens: 42,
        reasoning_tokens: 7,
        estimated: false,
    };
    assert_eq!(finished.usage, usage);
}

#[test]
fn wherever_the_bytes_are_cut_the_events_are_the_same() {
    for transcript in [WHOLE.to_owned(), WHOLE.replace('\n', "\r\n")] {
        let bytes = transcript.as_bytes();
        let expected = well(read_text(WHOLE));
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(well(read(vec![head, tail])), expected, "cut at byte {cut}");
        }
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(
                well(read(bytes.chunks(size).collect())),
                expected,
                "chunks of {size} bytes"
            );
        }
    }
}

#[test]
fn an_answer_that_ends_early_is_cut_wherever_it_ends() {
    let last = WHOLE.find("event: message_delta").unwrap();
    for end in (0..last).step_by(13).chain([last]) {
        let items = read(vec![&WHOLE.as_bytes()[..end]]);
        assert!(
            matches!(items.last(), Some(Err(Error::Cut(None)))),
            "ends at byte {end}: {:?}",
            items.last()
        );
        let errors = items.iter().filter(|item| item.is_err()).count();
        assert_eq!(errors, 1);
    }
}

#[test]
fn a_server_may_leave_out_the_last_event_but_not_the_reason() {
    let without = WHOLE.replace("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", "");
    assert_eq!(well(read_text(&without)), well(read_text(WHOLE)));
    let without = WHOLE.replace("\"stop_reason\":\"tool_use\"", "\"stop_reason\":null");
    assert!(matches!(read_text(&without).last(), Some(Err(Error::Cut(None)))));
}

#[test]
fn what_follows_the_end_is_not_read() {
    let more = format!("{WHOLE}event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\"}}}}\n\n");
    assert_eq!(well(read_text(&more)), well(read_text(WHOLE)));
}

#[test]
fn an_error_in_the_middle_ends_the_answer_with_its_reason() {
    let (head, _) = WHOLE.split_at(WHOLE.find("event: something_new").unwrap());
    let error = r#"event: error
data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_9"}

"#;
    let items = read_text(&format!("{head}{error}{WHOLE}"));
    let Some(Err(Error::Refused(refusal))) = items.last() else {
        panic!("{:?}", items.last())
    };
    assert_eq!((refusal.reason, refusal.status), (Reason::Overloaded, None));
    assert_eq!(refusal.request_id.as_deref(), Some("req_9"));
    assert_eq!(items.iter().filter(|item| item.is_err()).count(), 1);
}

#[test]
fn what_cannot_be_read_is_malformed_and_never_a_panic() {
    let bad: [&[u8]; 6] = [
        b"data: {\"type\":\n\n",
        b"data: not json\n\n",
        b"data: {\"type\":\"content_block_delta\",\"index\":4,\"delta\":{}}\n\n",
        b"data: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\"}}\n\n",
        b"data: {\"type\":\"content_block_start\",\"index\":99999999999,\"content_block\":{\"type\":\"tool_use\"}}\n\n",
        b"data: {\"type\":\"ping\"}\xff\xfe\n\n",
    ];
    for bytes in bad {
        let items = read(vec![bytes]);
        assert!(
            matches!(items.last(), Some(Err(Error::Malformed { .. }))),
            "{:?}",
            items.last()
        );
    }
    for value in ["null", "[]", "{}", "7", "{\"type\":[]}", "{\"type\":\"message_start\"}"] {
        let items = read_text(&format!("data: {value}\n\n"));
        assert!(
            matches!(items.last(), Some(Err(Error::Cut(None)))),
            "{value}: {:?}",
            items.last()
        );
    }
}

#[test]
fn usage_that_is_repeated_or_spread_is_counted_once() {
    let mut decoder = Decoder::default();
    let mut last = |data: Value| match decoder.event(&data.to_string()).unwrap().as_slice() {
        [ModelEvent::Usage(usage)] => *usage,
        other => panic!("{other:?}"),
    };
    let early = json!({"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": null, "output_tokens": 1});
    last(json!({"type": "message_start", "message": {"usage": early}}));
    last(json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 8}}));
    let usage = last(json!({"type": "message_delta", "delta": {}, "usage": {"input_tokens": 5, "output_tokens": 8}}));
    assert_eq!(
        (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens),
        (105, 100, 8)
    );
}
