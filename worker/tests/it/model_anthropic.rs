//! The Anthropic client against a real HTTP server: answers, refusals, and every way in which a server can fall silent.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::sync::Arc;
use std::time::Duration;

use assert_matches::assert_matches;
use chrono::DateTime;
use common::config::Secret;
use common::message::{Message, Part};
use futures_util::StreamExt;
use serde_json::json;
use worker::model::answer::Finished;
use worker::model::anthropic::Anthropic;
use worker::model::error::{Phase, Reason};
use worker::model::scripted::Scripted;
use worker::model::scripted::frame::Frame;
use worker::model::scripted::script::Script;
use worker::model::server::{Call, ServerSettings};
use worker::model::wire::Route;
use worker::model::{Answer, Class, Error, ModelProvider, ModelRequest, StopReason, ToolDefinition};

use crate::model_server::{Canned, KEY, ModelServer};

const SHORT: Duration = Duration::from_millis(200);

fn request(text: &str) -> ModelRequest {
    let tool = |name: &str| ToolDefinition {
        name: name.to_owned(),
        description: "runs it".to_owned(),
        input_schema: json!({"type": "object"}),
    };
    ModelRequest {
        system: "be brief".to_owned(),
        messages: vec![Message::user(text, DateTime::UNIX_EPOCH)],
        tools: vec![tool("bash"), tool("python")],
        max_output_tokens: 1_000,
        ..ModelRequest::of(Vec::new(), 0)
    }
}

/// The answer, and the error that it ended with.
async fn ask(provider: &dyn ModelProvider, model: &str, text: &str) -> (Finished, Option<Error>) {
    let mut answer = Answer::new("anthropic");
    let request = request(text);
    let mut stream = match provider.stream(model, &request).await {
        Ok(stream) => stream,
        Err(error) => return (answer.finish(), Some(error)),
    };
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => answer.push(event),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing follows an error");
                return (answer.finish(), Some(error));
            }
        }
    }
    (answer.finish(), None)
}

async fn ask_server(server: &ModelServer, settings: &ServerSettings) -> (Finished, Option<Error>) {
    assert_eq!(settings.base_url, server.base_url);
    ask(&Anthropic::new(settings).unwrap(), "demo", "hi").await
}

fn event(data: &serde_json::Value) -> Frame {
    Frame::Event(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap()))
}

fn begun() -> Vec<Frame> {
    let usage = json!({"input_tokens": 7, "output_tokens": 1});
    vec![
        event(&json!({"type": "message_start", "message": {"usage": usage}})),
        event(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
        event(&json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "some"}})),
    ]
}

fn ended() -> Vec<Frame> {
    vec![
        event(&json!({"type": "content_block_stop", "index": 0})),
        event(&json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}})),
        event(&json!({"type": "message_stop"})),
    ]
}

#[tokio::test]
async fn an_answer_over_http_is_the_one_that_the_script_gives() {
    let server = ModelServer::demo().await;
    let client = Anthropic::new(&server.settings()).unwrap();
    let scripted = Scripted::built_in();
    for text in [
        "hällo 世界",
        "run: echo hi",
        "```python\nprint('a')\n```\n```bash\nls\n```",
    ] {
        let (over_http, error) = ask(&client, "demo", text).await;
        assert_matches!(error, None);
        let (in_process, _) = ask(&scripted, "demo", text).await;
        assert_eq!(over_http, in_process, "{text}");
    }
}

#[tokio::test]
async fn the_request_carries_the_key_in_its_header_and_nowhere_else() {
    let server = ModelServer::demo().await;
    let (_, error) = ask_server(&server, &server.settings()).await;
    assert_matches!(error, None);
    let (headers, body) = server.requests().pop().unwrap();
    assert_eq!(headers["x-api-key"], KEY);
    assert_eq!(headers["anthropic-version"], "2023-06-01");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(
        (&body["model"], &body["stream"], &body["max_tokens"]),
        (&json!("demo"), &json!(true), &json!(1_000))
    );
    assert!(!body.to_string().contains(KEY));
}

#[tokio::test]
async fn a_key_may_stand_in_a_file() {
    let server = ModelServer::demo().await;
    let path = std::env::temp_dir().join(format!("hothouse-key-{}", std::process::id()));
    std::fs::write(&path, format!("{KEY}\n")).unwrap();
    let settings = ServerSettings {
        api_key: Secret::default(),
        api_key_file: Some(path.clone()),
        ..server.settings()
    };
    let (_, error) = ask_server(&server, &settings).await;
    std::fs::remove_file(&path).unwrap();
    assert_matches!(error, None);
    assert_eq!(server.requests()[0].0["x-api-key"], KEY);
    let missing = Anthropic::new(&settings).unwrap_err().to_string();
    assert!(missing.contains("api_key_file"), "{missing}");
}

#[tokio::test]
async fn a_refusal_says_why_and_when_to_come_back() {
    let server = ModelServer::demo().await;
    let body = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "no"}}).to_string();
    server.then(Canned::whole(
        429,
        &[("retry-after", "7"), ("request-id", "req_1")],
        &body("rate_limit_error"),
    ));
    server.then(Canned::whole(529, &[], &body("overloaded_error")));
    server.then(Canned::whole(
        429,
        &[("x-should-retry", "false")],
        &body("rate_limit_error"),
    ));
    let spent = json!({"error": {"type": "rate_limit_error", "message": "no",
                       "details": {"error_code": "enforced_spend_limit_reached"}}});
    server.then(Canned::whole(429, &[("retry-after", "1")], &spent.to_string()));
    server.then(Canned::whole(401, &[], &body("authentication_error")));
    server.then(Canned::whole(
        502,
        &[("content-type", "text/html")],
        "<html>bad gateway</html>",
    ));
    let mut errors = Vec::new();
    for _ in 0..6 {
        errors.push(ask_server(&server, &server.settings()).await.1.unwrap());
    }
    assert_eq!(errors[0].retry_after(), Some(Duration::from_secs(7)));
    assert_matches!(&errors[0], Error::Refused(refusal) if refusal.request_id.as_deref() == Some("req_1"));
    let reasons: Vec<(Reason, Class)> = errors
        .iter()
        .map(|error| match error {
            Error::Refused(refusal) => (refusal.reason, error.class()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        reasons,
        [
            (Reason::RateLimited, Class::Transient),
            (Reason::Overloaded, Class::Transient),
            (Reason::RateLimited, Class::Permanent),
            (Reason::SpendLimit, Class::Permanent),
            (Reason::Authentication, Class::Permanent),
            (Reason::Server, Class::Transient),
        ]
    );
    assert_eq!(server.requests().len(), 6, "the client itself never repeats a call");
    let printed = format!("{errors:?}");
    assert!(!printed.contains(KEY), "{printed}");
}

#[tokio::test]
async fn a_server_that_repeats_the_key_is_not_repeated() {
    let server = ModelServer::demo().await;
    let words = json!({"type": "error", "error": {"type": "some_error", "message": format!("no {KEY}")}});
    for status in [400, 401, 429, 500] {
        server.then(Canned::whole(status, &[("request-id", KEY)], &words.to_string()));
    }
    server.then(Canned::whole(503, &[], &format!("<html>{KEY}</html>")));
    let (one, other) = KEY.split_at(3);
    let frames = [
        format!("event: error\ndata: {{\"type\":\"error\",\"error\":{{\"message\":\"no {one}"),
        format!("{other}\"}}}}\n\n"),
    ];
    server.then(Canned::stream([begun(), frames.map(Frame::Event).to_vec()].concat()));
    for _ in 0..6 {
        let (_, error) = ask_server(&server, &server.settings()).await;
        let error = error.unwrap();
        let said = format!("{error} {error:?} {}", error.failure().message);
        assert!(said.contains("[key]") && !said.contains(KEY), "{said}");
    }
}

#[tokio::test]
async fn a_history_that_the_wire_does_not_allow_is_refused_by_the_server() {
    let server = ModelServer::demo().await;
    let client = Anthropic::new(&server.settings()).unwrap();
    let mut request = request("hi");
    let call = Part::ToolCall {
        id: "a".to_owned(),
        name: "bash".to_owned(),
        input: json!({}),
    };
    request.messages.push(Message::new(
        common::message::Role::Assistant,
        vec![call],
        DateTime::UNIX_EPOCH,
    ));
    let error = client.stream("demo", &request).await.err().unwrap();
    assert_matches!(&error, Error::Refused(refusal) if refusal.reason == Reason::InvalidRequest);
    request.messages = common::message::repair(request.messages);
    assert!(client.stream("demo", &request).await.is_ok());
}

#[tokio::test]
async fn a_stream_that_is_cut_gives_what_came_and_then_an_error() {
    let server = ModelServer::demo().await;
    server.then(Canned::stream([begun(), vec![Frame::Cut]].concat()));
    server.then(Canned::stream(begun()));
    for _ in 0..2 {
        let (finished, error) = ask_server(&server, &server.settings()).await;
        assert_eq!(finished.parts, [Part::text("some")]);
        assert_eq!((finished.stop_reason, finished.usage.input_tokens), (None, 7));
        let error = error.unwrap();
        assert_matches!(error, Error::Cut(_));
        assert_eq!(error.class(), Class::Transient);
    }
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_when_its_time_is_up() {
    let server = ModelServer::demo().await;
    let settings = ServerSettings {
        first_byte_timeout: SHORT,
        silence_timeout: SHORT,
        ..server.settings()
    };

    server.then(Canned::stream(vec![Frame::Stall]));
    let (_, error) = ask_server(&server, &settings).await;
    assert_matches!(
        error,
        Some(Error::Timeout {
            phase: Phase::FirstByte,
            limit: SHORT
        })
    );

    server.then(Canned::stream([begun(), vec![Frame::Stall]].concat()));
    let (finished, error) = ask_server(&server, &settings).await;
    assert_eq!(finished.parts, [Part::text("some")]);
    assert_matches!(
        error,
        Some(Error::Timeout {
            phase: Phase::NextByte,
            limit: SHORT
        })
    );
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_has_a_time_of_its_own() {
    let server = ModelServer::demo().await;
    let settings = ServerSettings {
        first_byte_timeout: SHORT,
        ..server.settings()
    };
    let call = |is_streamed| Call {
        route: Route::Messages,
        headers: Vec::new(),
        body: json!({"model": "demo"}).to_string().into(),
        is_streamed,
    };
    let written = || Canned::whole(200, &[("content-type", "application/json")], "{}").after(SHORT * 2);
    server.then(written());
    let client = Anthropic::new(&settings).unwrap();
    let reply = client.forward(call(false)).await.unwrap();
    let body: Vec<_> = reply.body.collect().await;
    assert_matches!(&body[..], [Ok(body)] if body == "{}");

    let impatient = ServerSettings {
        answer_timeout: SHORT,
        ..server.settings()
    };
    for (settings, is_streamed, expected) in [(impatient, false, Phase::Answer), (settings, true, Phase::FirstByte)] {
        server.then(written());
        let client = Anthropic::new(&settings).unwrap();
        let error = async {
            let mut reply = client.forward(call(is_streamed)).await?;
            reply.body.next().await.transpose()
        };
        assert_matches!(error.await, Err(Error::Timeout { phase, limit: SHORT }) if phase == expected);
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_at_all_is_left_when_its_time_is_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let settings = ServerSettings {
        base_url,
        first_byte_timeout: SHORT,
        ..ServerSettings::default()
    };
    let (_, error) = ask(&Anthropic::new(&settings).unwrap(), "demo", "hi").await;
    assert_matches!(
        error,
        Some(Error::Timeout {
            phase: Phase::FirstByte,
            ..
        })
    );

    drop(listener);
    let (_, error) = ask(&Anthropic::new(&settings).unwrap(), "demo", "hi").await;
    assert_matches!(&error, Some(error @ Error::Connect(_)) if error.class() == Class::Transient);
}

#[tokio::test]
async fn pings_keep_a_slow_answer_alive() {
    let server = ModelServer::demo().await;
    let settings = ServerSettings {
        silence_timeout: SHORT,
        ..server.settings()
    };
    let ping = || vec![Frame::Wait(SHORT / 4), event(&json!({"type": "ping"}))];
    let pings: Vec<Frame> = (0..8).flat_map(|_| ping()).collect();
    server.then(Canned::stream([begun(), pings, ended()].concat()));
    let (finished, error) = ask_server(&server, &settings).await;
    assert_matches!(error, None);
    assert_eq!(
        (finished.stop_reason, finished.usage.output_tokens),
        (Some(StopReason::EndTurn), 2)
    );
}

#[tokio::test]
async fn an_answer_that_is_no_stream_is_malformed() {
    let server = ModelServer::demo().await;
    server.then(Canned::whole(
        200,
        &[("content-type", "application/json")],
        "{\"content\": []}",
    ));
    let (_, error) = ask_server(&server, &server.settings()).await;
    assert_matches!(error, Some(Error::Malformed { what }) if what.contains("application/json"));
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_key() {
    let (server, elsewhere) = (ModelServer::demo().await, ModelServer::demo().await);
    let location: &'static str = format!("{}/v1/messages", elsewhere.base_url).leak();
    server.then(Canned::whole(307, &[("location", location)], ""));
    let (_, error) = ask_server(&server, &server.settings()).await;
    assert_matches!(error, Some(Error::Refused(refusal)) if refusal.status == Some(307));
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn leaving_an_answer_ends_the_call() {
    let server = ModelServer::demo().await;
    server.then(Canned::stream([begun(), vec![Frame::Stall]].concat()));
    let client = Anthropic::new(&server.settings()).unwrap();
    let mut stream = client.stream("demo", &request("hi")).await.unwrap();
    assert!(stream.next().await.is_some());
    drop(stream);
    let gone = async {
        while server.abandoned() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .expect("the server is told that nobody listens");
}

#[tokio::test]
async fn tokens_are_metered_exactly_as_the_server_counted_them() {
    let mixed = json!({"rules": [
        {"when": {"user_contains": "7"}, "reply": [{"reasoning": "hm"}, {"text": "seven: {{user}}"}]},
        {"when": {"user_contains": "3"}, "reply": [{"tool_call": {"name": "bash", "input": {"command": "echo three"}}}]},
        {"reply": [{"text": "{{user}}{{user}}"}]},
    ]});
    let mixed: Script = serde_json::from_value(mixed).unwrap();
    let server = ModelServer::start(Scripted::built_in().with("mixed", mixed)).await;
    let client = Arc::new(Anthropic::new(&server.settings()).unwrap());
    let mut metered = common::message::Usage::default();
    for batch in 0..10 {
        let calls = (0..50).map(|n| {
            let client = Arc::clone(&client);
            async move { ask(&*client, "mixed", &format!("call {batch} {n}")).await }
        });
        for (finished, error) in futures_util::future::join_all(calls).await {
            assert_matches!(error, None);
            metered += finished.usage;
        }
    }
    assert_eq!(metered, server.reported());
    assert!(metered.output_tokens > 500 && !metered.estimated, "{metered:?}");
}
