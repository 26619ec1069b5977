//! The OpenAI client against a real HTTP server: answers, refusals, and streams that break.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Duration;

use assert_matches::assert_matches;
use chrono::DateTime;
use common::message::{Message, Part, Usage, repair};
use futures_util::StreamExt;
use serde_json::json;
use worker::model::answer::Finished;
use worker::model::error::Reason;
use worker::model::openai::OpenAi;
use worker::model::scripted::Scripted;
use worker::model::scripted::frame::Frame;
use worker::model::scripted::script::Script;
use worker::model::{Answer, Class, Error, ModelProvider, ModelRequest, StopReason, ToolDefinition};

use crate::model_server::{Canned, KEY, ModelServer};

fn request(text: &str) -> ModelRequest {
    let tool = |name: &str| ToolDefinition {
        name: name.to_owned(),
        description: "runs it".to_owned(),
        input_schema: json!({"type": "object"}),
    };
    ModelRequest {
        system: "be brief".to_owned(),
        tools: vec![tool("bash"), tool("python")],
        ..ModelRequest::of(vec![Message::user(text, DateTime::UNIX_EPOCH)], 1_000)
    }
}

async fn ask(provider: &dyn ModelProvider, model: &str, text: &str) -> (Finished, Option<Error>) {
    let mut answer = Answer::new("openai");
    let request = request(text);
    let mut stream = match provider.stream(model, &request).await {
        Ok(stream) => stream,
        Err(error) => return (answer.finish(), Some(error)),
    };
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => answer.push(event),
            Err(error) => return (answer.finish(), Some(error)),
        }
    }
    (answer.finish(), None)
}

fn client(server: &ModelServer) -> OpenAi {
    OpenAi::new("openai", &server.settings()).unwrap()
}

#[tokio::test]
async fn an_answer_over_http_is_the_one_that_the_script_gives() {
    let server = ModelServer::demo().await;
    let scripted = Scripted::built_in();
    for text in [
        "hällo 世界",
        "run: echo hi",
        "```python\nprint('a')\n```\n```bash\nls\n```",
    ] {
        let (over_http, error) = ask(&client(&server), "demo", text).await;
        assert_matches!(error, None);
        let (in_process, _) = ask(&scripted, "demo", text).await;
        // This wire carries no proof of reasoning.
        let plain = |finished: Finished| {
            let parts = finished.parts.into_iter();
            let parts: Vec<Part> = parts.filter(|part| !matches!(part, Part::Reasoning { .. })).collect();
            (parts, finished.faults, finished.usage, finished.stop_reason)
        };
        assert_eq!(plain(over_http), plain(in_process), "{text}");
    }
}

#[tokio::test]
async fn the_request_carries_the_key_in_its_header_and_asks_for_usage() {
    let server = ModelServer::demo().await;
    let (_, error) = ask(&client(&server), "demo", "hi").await;
    assert_matches!(error, None);
    let (headers, body) = server.requests().pop().unwrap();
    assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
    assert_eq!(headers.get("x-api-key"), None);
    assert_eq!(body["stream_options"], json!({"include_usage": true}));
    assert_eq!(
        (&body["max_tokens"], &body["messages"][0]["role"]),
        (&json!(1_000), &json!("system"))
    );
    assert!(!body.to_string().contains(KEY));
}

#[tokio::test]
async fn refusals_have_their_reasons() {
    let server = ModelServer::demo().await;
    let body = |kind: &str, code: &str| json!({"error": {"message": "no", "type": kind, "code": code}}).to_string();
    let answers = [
        (
            429,
            body("requests", "rate_limit_exceeded"),
            Reason::RateLimited,
            Class::Transient,
        ),
        (
            429,
            body("insufficient_quota", "insufficient_quota"),
            Reason::SpendLimit,
            Class::Permanent,
        ),
        (
            401,
            body("invalid_request_error", "invalid_api_key"),
            Reason::Authentication,
            Class::Permanent,
        ),
        (
            404,
            body("invalid_request_error", "model_not_found"),
            Reason::NotFound,
            Class::Permanent,
        ),
        (
            400,
            body("invalid_request_error", "x"),
            Reason::InvalidRequest,
            Class::Permanent,
        ),
        (
            400,
            body("invalid_request_error", "context_length_exceeded"),
            Reason::TooLarge,
            Class::Permanent,
        ),
        (500, body("server_error", ""), Reason::Server, Class::Transient),
        (503, "overloaded".to_owned(), Reason::Overloaded, Class::Transient),
    ];
    for (status, body, reason, class) in answers {
        server.then(Canned::whole(
            status,
            &[("retry-after", "7"), ("x-request-id", "req_1")],
            &body,
        ));
        let error = ask(&client(&server), "demo", "hi").await.1.unwrap();
        assert_eq!(error.class(), class, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert_matches!(&error, Error::Refused(refusal) if refusal.reason == reason, "{error}");
        assert!(error.to_string().contains("req_1"), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_or_is_refused_in_the_middle_gives_what_came_and_an_error() {
    let server = ModelServer::demo().await;
    let begun = || {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": "some"}}]});
        vec![Frame::Event(format!("data: {chunk}\n\n"))]
    };
    let refused = Frame::Event("data: {\"error\": {\"type\": \"server_error\", \"message\": \"x\"}}\n\n".to_owned());
    server.then(Canned::stream([begun(), vec![Frame::Cut]].concat()));
    server.then(Canned::stream(begun()));
    server.then(Canned::stream([begun(), vec![refused]].concat()));
    for _ in 0..3 {
        let (finished, error) = ask(&client(&server), "demo", "hi").await;
        assert_eq!(finished.parts, [Part::text("some")]);
        assert_eq!((finished.stop_reason, finished.usage.estimated), (None, true));
        assert_eq!(error.unwrap().class(), Class::Transient);
    }
}

#[tokio::test]
async fn any_history_that_is_repaired_is_taken_by_this_wire() {
    let server = ModelServer::demo().await;
    let call = |id: &str| Part::ToolCall {
        id: id.to_owned(),
        name: "bash".to_owned(),
        input: json!({"command": "ls"}),
    };
    let mut request = request("hi");
    let calls = vec![Part::text("so"), call("a"), call("b")];
    request.messages.push(Message::new(
        common::message::Role::Assistant,
        calls,
        DateTime::UNIX_EPOCH,
    ));
    request.messages = repair(request.messages);
    let stream = client(&server).stream("demo", &request).await.unwrap();
    assert!(stream.count().await > 0);
    let roles: Vec<String> = server.requests()[0].1["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(roles[..5], ["system", "user", "assistant", "tool", "tool"]);
}

#[tokio::test]
async fn tokens_are_metered_exactly_as_the_server_counted_them() {
    let cached = json!({"input_tokens": 500, "cached_input_tokens": 300, "cache_write_short_tokens": 100,
                        "output_tokens": 40, "reasoning_tokens": 8});
    let mixed = json!({"rules": [
        {"when": {"user_contains": "7"}, "reply": [{"usage": cached}, {"reasoning": "hm"}, {"text": "seven"}]},
        {"when": {"user_contains": "3"}, "reply": [{"tool_call": {"name": "bash", "input": {"command": "echo three"}}}]},
        {"reply": [{"text": "{{user}}{{user}}"}]},
    ]});
    let mixed: Script = serde_json::from_value(mixed).unwrap();
    let server = ModelServer::start(Scripted::built_in().with("mixed", mixed)).await;
    let client = Arc::new(client(&server));
    let mut metered = Usage::default();
    let calls = (0..100).map(|n| {
        let client = Arc::clone(&client);
        async move { ask(&*client, "mixed", &format!("call {n}")).await }
    });
    for (finished, error) in futures_util::future::join_all(calls).await {
        assert_matches!(error, None);
        assert_matches!(finished.stop_reason, Some(StopReason::EndTurn | StopReason::ToolUse));
        metered += finished.usage;
    }
    assert_eq!(metered, server.reported());
    assert!(metered.cached_input_tokens > 0 && metered.cache_write_short_tokens > 0 && !metered.estimated);
}
