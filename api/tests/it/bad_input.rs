//! Everything that a client can send wrong has a clear answer, and never a 500.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixture::{Answer, Api, answer};

async fn refused(api: &Api, body: Value) -> Answer {
    let answer = api.post("/jobs", body).await;
    answer.is_problem(422, "invalid_request");
    answer
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_body_that_is_not_json_is_a_400(pool: PgPool) {
    let api = Api::start(pool).await;
    let bomb = format!("{{\"kind\":\"noop\",\"input\":{{\"a\":{}", "[".repeat(500_000));
    let closed_bomb = format!("{}{}}}}}", bomb, "]".repeat(500_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"{\"kind\":\"noop\"} x".to_vec(),
        b"nonsense".to_vec(),
        b"{\"kind\":\"no\xffop\"}".to_vec(),
        b"\xff\xfe{}".to_vec(),
        b"{\"kind\":\"noop\",\"metadata\":{\"a\":\"\\ud800\"}}".to_vec(),
        b"{\"kind\":\"noop\",\"metadata\":{\"a\":1e999}}".to_vec(),
        bomb.into_bytes(),
        closed_bomb.into_bytes(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = api.post_bytes("/jobs", body).await;
        assert_eq!(
            (answer.status.as_u16(), shown.as_str()),
            (400, shown.as_str()),
            "{}",
            answer.body
        );
        answer.is_problem(400, "malformed_body");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wrong_field_is_a_422_that_names_it(pool: PgPool) {
    let api = Api::start(pool).await;
    let with = |name: &str, value: Value| json!({"kind": "noop", name: value});
    let exec = |input: Value| json!({"kind": "exec", "input": input});
    let cases = [
        (json!([]), ""),
        (json!({}), "/kind"),
        (json!({"kind": "chat_turn"}), "/kind"),
        (json!({"kind": 1}), "/kind"),
        (with("surprise", json!(1)), "/surprise"),
        (with("priority", json!(10)), "/priority"),
        (with("priority", json!(-1)), "/priority"),
        (with("priority", json!("5")), "/priority"),
        (with("delay", json!("100 years")), "/delay"),
        (with("delay", json!("99999999999999999999y")), "/delay"),
        (with("delay", json!("soon")), "/delay"),
        (with("delay", json!(5)), "/delay"),
        (with("run_at", json!("2999-01-01T00:00:00Z")), "/run_at"),
        (with("run_at", json!("-4800-01-01T00:00:00Z")), "/run_at"),
        (with("run_at", json!("tomorrow")), "/run_at"),
        (with("timeout", json!("0s")), "/timeout"),
        (with("timeout", json!("301s")), "/timeout"),
        (with("max_attempts", json!(0)), "/max_attempts"),
        (with("max_attempts", json!(101)), "/max_attempts"),
        (with("backoff", json!({"initial": "10m"})), "/backoff/initial"),
        (with("backoff", json!({"factor": 0.5})), "/backoff/factor"),
        (with("backoff", json!({"step": "1s"})), "/backoff/step"),
        (with("retry_on", json!(["bad_luck"])), "/retry_on/0"),
        (with("labels", json!(["a b"])), "/labels/0"),
        (with("labels", json!(["a", "b,c"])), "/labels/1"),
        (with("queue", json!("")), "/queue"),
        (with("queue", json!("a/b")), "/queue"),
        (with("queue", json!("a\u{0}")), "/queue"),
        (with("user_id", json!("\u{0}")), "/user_id"),
        (with("concurrency", json!({"key": "", "limit": 1})), "/concurrency/key"),
        (with("concurrency", json!({"limit": 2})), "/concurrency/key"),
        (with("concurrency", json!({"strategy": "reject"})), "/concurrency/key"),
        (with("rate", json!({"limit": 5, "window": "1s"})), "/rate/key"),
        (
            with("concurrency", json!({"key": "k", "limit": 0})),
            "/concurrency/limit",
        ),
        (
            with("concurrency", json!({"key": "k", "strategy": "fight"})),
            "/concurrency/strategy",
        ),
        (with("metadata", json!([])), "/metadata"),
        (with("metadata", json!({"a/b": "x\u{0}y"})), "/metadata/a~1b"),
        (with("metadata", json!({"a": {"b": ["\u{0}"]}})), "/metadata/a"),
        (with("metadata", json!({"a": "x".repeat(17_000)})), "/metadata"),
        (with("input", json!([])), "/input"),
        (with("input", json!("text")), "/input"),
        (exec(json!({"language": "no language", "code": ""})), "/input/language"),
        (exec(json!({"language": "python"})), "/input/code"),
        (exec(json!({"language": "python", "code": 1})), "/input/code"),
        (exec(json!({"language": "python", "code": "", "cod": ""})), "/input/cod"),
        (exec(json!({"command": ["a\u{0}"]})), "/input/command/0"),
        (exec(json!({"command": ["a"], "env": {"A": "\u{0}"}})), "/input/env/A"),
        (
            exec(json!({"command": ["a"], "files": [{"path": "../x", "content": ""}]})),
            "/input/files/0/path",
        ),
        (
            json!({"kind": "agent_run", "input": {"input": "hi"}}),
            "/input/agent_id",
        ),
        (
            json!({"kind": "agent_run", "input": {"agent": {"models": []}, "input": "hi"}}),
            "/input/agent/models",
        ),
    ];
    for (body, pointer) in cases {
        let shown = body.to_string();
        let shown = shown.get(..shown.len().min(200)).unwrap_or_default().to_owned();
        let answer = refused(&api, body).await;
        assert_eq!(answer.places(), [pointer], "{shown}: {}", answer.body);
        assert!(
            answer.body["detail"].as_str().unwrap().contains(pointer),
            "{}",
            answer.body
        );
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_fault_of_a_body_is_named_at_once(pool: PgPool) {
    let api = Api::start(pool).await;
    let body =
        json!({"kind": "noop", "priority": 10, "delay": "1s", "run_at": "2026-01-01T00:00:00Z", "max_attempts": 0});
    let answer = refused(&api, body).await;
    assert_eq!(answer.places(), ["/priority", "/max_attempts", "/delay"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_answer_does_not_name_every_fault_of_a_long_list(pool: PgPool) {
    let api = Api::start(pool).await;
    let labels = refused(&api, json!({"kind": "noop", "labels": vec![""; 100_000]})).await;
    assert_eq!(labels.places()[..2], ["/labels", "/labels/0"]);
    assert!(
        labels.body.to_string().len() < 10_000,
        "{} errors",
        labels.places().len()
    );
    let metadata: serde_json::Map<String, Value> =
        (0..1_000).map(|n| (format!("{n:04}"), Value::from("\u{0}"))).collect();
    let notes = refused(&api, json!({"kind": "noop", "metadata": metadata})).await;
    assert_eq!(notes.places().len(), 50);
    assert!(notes.body["detail"].as_str().unwrap().ends_with("more"));
    let rules = refused(&api, json!({"kind": "noop", "retry_on": vec!["timeout"; 33]})).await;
    assert_eq!(rules.places(), ["/retry_on"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_too_large_is_a_413(pool: PgPool) {
    let api = Api::start(pool).await;
    let code = json!({"kind": "exec", "input": {"language": "python", "code": "#".repeat(10_000_000)}});
    let answer = api.post("/jobs", code).await;
    answer.is_problem(413, "too_large");
    assert_eq!(answer.places(), ["/input"]);
    let huge = json!({"kind": "exec", "input": {"language": "python", "code": "#".repeat(20_000_000)}});
    api.post("/jobs", huge).await.is_problem(413, "too_large");
    let fits = json!({"kind": "exec", "input": {"language": "python", "code": "#".repeat(8_000_000)}});
    api.post("/jobs", fits).await.expect(202);
}

/// It sends all of its body before it looks at the answer, as most clients do.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn whose_body_is_not_wanted_is_told_so_and_can_go_on(pool: PgPool) {
    let api = Api::start(pool).await;
    let mut connection = tokio::net::TcpStream::connect(api.address).await.unwrap();
    for (key, status) in [("nobodys", "401"), (api.key.as_str(), "413"), ("nobodys", "401")] {
        let length = 30_000_000;
        let head = format!(
            "POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&vec![b' '; length]).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(connection.read_buf(&mut answer).await.unwrap(), 0, "it was hung up on");
        }
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn who_asks_before_sending_a_body_hears_that_it_is_not_wanted(pool: PgPool) {
    let api = Api::start(pool).await;
    let mut connection = tokio::net::TcpStream::connect(api.address).await.unwrap();
    let head = "POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\nexpect: 100-continue\r\n\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Below the time that a client has for a piece of what it did not stop sending.
    let whole = tokio::time::timeout(Duration::from_secs(4), connection.read_to_end(&mut answer)).await;
    assert!(whole.is_ok(), "nobody waits for what was not asked for");
    assert!(
        answer.starts_with(b"HTTP/1.1 401 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nul_in_code_is_kept(pool: PgPool) {
    let api = Api::start(pool).await;
    let input = json!({"language": "python", "code": "print('a\u{0}b')", "stdin": "\u{0}"});
    let id = api.submit(json!({"kind": "exec", "input": input})).await;
    assert_eq!(api.get(&format!("/jobs/{id}")).await.expect(200)["input"], input);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn values_of_variables_are_never_shown(pool: PgPool) {
    let api = Api::start(pool).await;
    let id = api
        .submit(json!({"kind": "exec", "input": {"command": ["env"], "env": {"TOKEN": "s3cret"}}}))
        .await;
    for path in [format!("/jobs/{id}"), "/jobs".to_owned(), format!("/jobs/{id}/events")] {
        let shown = api.get(&path).await.expect(200).to_string();
        assert!(!shown.contains("s3cret"), "{path}: {shown}");
    }
    let shown = api.get(&format!("/jobs/{id}")).await.expect(200);
    assert_eq!(shown["input"]["env"], json!({"TOKEN": "[redacted]"}));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_type_or_method_or_path_has_its_answer(pool: PgPool) {
    let api = Api::start(pool).await;
    let form = api
        .request(Method::POST, "/jobs")
        .header("content-type", "application/x-www-form-urlencoded")
        .body("a=b");
    answer(form).await.is_problem(415, "unsupported_media_type");
    answer(api.request(Method::PUT, "/jobs"))
        .await
        .is_problem(405, "method_not_allowed");
    api.get("/nothing").await.is_problem(404, "not_found");
    answer(api.bare(Method::GET, "/%ff%00"))
        .await
        .is_problem(404, "not_found");
    let merged = api
        .request(Method::POST, "/jobs")
        .header("content-type", "application/vnd.x+json; charset=utf-8");
    answer(merged.body("{\"kind\":\"noop\"}")).await.expect(202);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_id_that_is_none_is_a_404(pool: PgPool) {
    let api = Api::start(pool).await;
    for id in [
        "garbage",
        "%00",
        "%ff",
        "0",
        "01a1fc32-6400-72c3-8633-dc013012e596",
        "..%2f..",
    ] {
        for path in ["", "/events", "/attempts", "/egress"] {
            api.get(&format!("/jobs/{id}{path}")).await.is_problem(404, "not_found");
        }
        for action in ["cancel", "redrive", "stream-tokens"] {
            api.post(&format!("/jobs/{id}/{action}"), json!({}))
                .await
                .is_problem(404, "not_found");
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_query_that_is_garbage_is_a_422_that_names_it(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let cases = [
        ("/jobs?limit=0".to_owned(), "limit"),
        ("/jobs?limit=x".to_owned(), "limit"),
        ("/jobs?limit=1000000".to_owned(), "limit"),
        ("/jobs?cursor=garbage".to_owned(), "cursor"),
        ("/jobs?cursor=%00".to_owned(), "cursor"),
        ("/jobs?state=happy".to_owned(), "state"),
        ("/jobs?kind=happy".to_owned(), "kind"),
        ("/jobs?agent_id=1".to_owned(), "agent_id"),
        ("/jobs?stat=queued".to_owned(), "stat"),
        ("/jobs?q=%00".to_owned(), "q"),
        ("/jobs?metadata.a=%00".to_owned(), "metadata.a"),
        ("/jobs?queue=a&queue=b".to_owned(), "queue"),
        (format!("/jobs/{job}?wait=100y"), "wait"),
        (format!("/jobs/{job}?wait=soon"), "wait"),
        (format!("/jobs/{job}/events?after=-1"), "after"),
        (format!("/jobs/{job}/events?after=99999999999999999999"), "after"),
    ];
    for (path, parameter) in cases {
        let answer = api.get(&path).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [parameter], "{path}: {}", answer.body);
    }
    let header = api
        .request(Method::GET, &format!("/jobs/{job}/events"))
        .header("last-event-id", "x");
    let header = answer(header).await;
    header.is_problem(422, "invalid_request");
    assert_eq!(header.places(), ["Last-Event-ID"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_request_id_is_taken_over_only_when_harmless(pool: PgPool) {
    let api = Api::start(pool).await;
    let given = answer(api.request(Method::GET, "/jobs/x").header("x-request-id", "mine-1")).await;
    assert_eq!(given.body["request_id"], "mine-1");
    let odd = answer(api.request(Method::GET, "/jobs/x").header("x-request-id", "a b\"c")).await;
    odd.is_problem(404, "not_found");
    assert!(odd.body["request_id"].as_str().unwrap().starts_with("req_"));
}
