//! The native harness through whole attempts in real sandboxes: its tools, people's permission, words in between, and
//! going on after an interruption.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use common::job::decision::{Decision, Outcome};
use common::job::event::EventBody;
use common::job::spec::{JobSpec, Kind};
use common::job::{NewJob, StateName};
use common::message::{Message, Part};
use common::store::Store;
use common::store::approvals::{Answer, Answered};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use worker::consumer::held::Stop;
use worker::model;
use worker::model::books::Books;

use crate::attempts::{Bench, Done};
use crate::model_server::ModelServer;

/// A machine whose model `scripted/test` plays these rules.
async fn bench(pool: PgPool, rules: &Value) -> (Bench, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let script = json!({ "rules": rules }).to_string();
    std::fs::write(folder.path().join("test.json"), script).unwrap();
    let settings = model::Settings {
        scripts: Some(folder.path().to_owned()),
        ..model::Settings::default()
    };
    (Bench::new(pool, settings, |_| {}).await, folder)
}

fn run_of(bench: &Bench, tools: &Value) -> NewJob {
    let mut spec = JobSpec::new(Kind::AgentRun);
    spec.timeout = Duration::from_mins(1);
    let agent = json!({"models": ["scripted/test"], "tools": tools});
    bench.job(spec, &json!({"input": "go", "agent": agent}))
}

fn call(name: &str, input: &Value) -> Value {
    json!({"tool_call": {"name": name, "input": input}})
}

/// What the tools answered, in order: whether they failed, and their output.
fn results(done: &Done) -> Vec<(bool, String)> {
    let parts = done.ended.messages.iter().flat_map(|message| &message.parts);
    let results = parts.filter_map(|part| match part {
        Part::ToolResult { is_error, output, .. } => Some((*is_error, output.clone())),
        _ => None,
    });
    results.collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_tool_does_its_work(pool: PgPool) {
    let python = |code: &str| call("python", &json!({ "code": code }));
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [
                call("write", &json!({"path": "d/a.txt", "content": "one\ntwo\n"})),
                python("import os\nx = 6 * 7\nprint('first', end='')"),
                python("print(x); raise ValueError('no')"),
            ]},
            {"when": {"step": 1}, "reply": [
                call("edit", &json!({"path": "d/a.txt", "old": "two", "new": "2"})),
                call("edit", &json!({"path": "d/a.txt", "old": "one", "new": "1"})),
                python("print(x + 1)\nimport sys; sys.exit(3)"),
            ]},
            {"when": {"step": 2}, "reply": [
                call("read", &json!({"path": "d/a.txt"})),
                call("list", &json!({"depth": 2})),
                call("search", &json!({"pattern": "^[0-9]$"})),
                call("search", &json!({"pattern": "nowhere"})),
                call("list", &json!({"path": "none"})),
                call("fetch", &json!({"url": "file:///etc/passwd"})),
                call("python", &json!({"code": "import time\ntime.sleep(60)", "timeout": 1})),
            ]},
            {"when": {"step": 3}, "reply": [python("print(x)"), python("os._exit(9)"), python("print('x' in dir())")]},
            {"reply": [{"text": "done"}]},
        ]),
    )
    .await;
    let done = bench.run(&run_of(&bench, &json!(["python", "files", "fetch"]))).await;
    assert_eq!(done.result()["text"], "done");
    let results = results(&done);
    assert_eq!(results[1], (false, "first".to_owned()));
    assert!(results[2].0 && results[2].1.starts_with("42\nTraceback") && results[2].1.contains("ValueError: no"));
    assert!(
        !results[2].1.contains("exec("),
        "our own frame is not shown: {}",
        results[2].1
    );
    assert_eq!(results[5], (true, "43\n[exit code 3]".to_owned()));
    assert_eq!(results[6], (false, "1\n2\n".to_owned()));
    assert!(
        results[7].1.contains("d 4096 ./d") || results[7].1.contains("./d\n"),
        "{:?}",
        results[7]
    );
    assert!(results[7].1.contains("./d/a.txt"), "{:?}", results[7]);
    assert_eq!(results[8], (false, "./d/a.txt:1:1\n./d/a.txt:2:2\n".to_owned()));
    assert_eq!(results[9], (false, "(no line matches)".to_owned()));
    assert!(
        results[10].0 || results[10].1.contains("No such file"),
        "{:?}",
        results[10]
    );
    assert!(
        results[11].0 && results[11].1.contains("only http and https"),
        "{:?}",
        results[11]
    );
    assert!(
        results[12].0 && results[12].1.contains("interrupted"),
        "{:?}",
        results[12]
    );
    assert_eq!(
        results[13],
        (false, "42\n".to_owned()),
        "an interrupted program leaves the state"
    );
    assert!(
        results[14].0 && results[14].1.contains("[variables and imports are gone]"),
        "{:?}",
        results[14]
    );
    assert_eq!(results[15], (false, "False\n".to_owned()));
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn calls_of_one_answer_run_at_once(pool: PgPool) {
    // Each waits for the other's file: one after the other they would wait for ever.
    let wait = |mine: &str, other: &str| {
        let command = format!("touch {mine}; until [ -e {other} ]; do sleep 0.02; done; echo {mine}");
        call("bash", &json!({ "command": command }))
    };
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [wait("a", "b"), wait("b", "a")]},
            {"reply": [{"text": "done"}]},
        ]),
    )
    .await;
    let done = bench.run(&run_of(&bench, &json!(["bash"]))).await;
    assert_eq!(done.result()["text"], "done");
    assert_eq!(results(&done), [(false, "a\n".to_owned()), (false, "b\n".to_owned())]);
    bench.end().await;
}

async fn answer(bench: &Bench, question: usize, done: &Done, is_approved: bool, comment: Option<&str>) -> StateName {
    let answer = Answer {
        is_approved,
        comment: comment.map(str::to_owned),
        by: None,
        at: bench.env.clock.now(),
    };
    let id = done.ended.approvals[question].id;
    let answered = bench
        .env
        .store
        .answer_approval(done.job.tenant_id, id, &answer)
        .await
        .unwrap();
    let Some(Answered::Taken(_, job)) = answered else {
        unreachable!("{answered:?}")
    };
    bench.env.redispatch().await;
    job.state.name()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_needs_permission_waits_without_a_worker_and_goes_on_where_it_was(pool: PgPool) {
    let bash = |command: &str| call("bash", &json!({ "command": command }));
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [{"text": "First."}, call("python", &json!({"code": "print('free')"}))]},
            {"when": {"step": 1}, "reply": [{"text": "May I?"}, bash("echo yes"), bash("echo no"),
                call("python", &json!({"code": "print('beside')"}))]},
            {"reply": [{"text": "{{output}}"}]},
        ]),
    )
    .await;
    let ask = json!(["python", {"name": "bash", "policy": "ask", "deadline": "1h"}]);
    let done = bench.run(&run_of(&bench, &ask)).await;
    let Outcome::Waits(wait) = &done.ended.outcome else {
        unreachable!("{done:?}")
    };
    assert_eq!(done.ended.approvals.len(), 2);
    assert_eq!(wait.deadline, Some(done.ended.approvals[0].deadline));
    assert_eq!(
        results(&done),
        [(false, "free\n".to_owned())],
        "nothing of the answer that asks was run"
    );
    done.settle_as(Decision::Wait(wait.clone())).await;
    assert_eq!(answer(&bench, 0, &done, true, None).await, StateName::Waiting);
    assert_eq!(
        answer(&bench, 1, &done, false, Some("not that")).await,
        StateName::Queued
    );

    let again = bench.run_next(None).await;
    assert_eq!(again.job.attempt, 2);
    let text = again.result()["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains("yes\n") && text.contains("did not allow it. They said: not that"),
        "{text}"
    );
    assert!(text.contains("beside"), "{text}");
    // What was said before the wait stands in the log, and is not said again.
    let said: Vec<&EventBody> = again
        .said
        .iter()
        .filter(|body| matches!(body, EventBody::Message { .. }))
        .collect();
    assert_eq!(said.len(), 2, "the results and the answer: {said:?}");
    assert_eq!(again.ended.messages.len(), 5);
    let ids: Vec<_> = again.ended.messages[..3].iter().map(|message| message.id).collect();
    let before: Vec<_> = done.ended.messages.iter().map(|message| message.id).collect();
    assert_eq!(ids, before, "a message that was said keeps its id");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn without_an_answer_in_time_the_call_is_not_run(pool: PgPool) {
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [call("bash", &json!({"command": "echo ran"}))]},
            {"reply": [{"text": "{{output}}"}]},
        ]),
    )
    .await;
    let ask = json!([{"name": "bash", "policy": "ask", "deadline": "10s"}]);
    let done = bench.run(&run_of(&bench, &ask)).await;
    let Outcome::Waits(wait) = &done.ended.outcome else {
        unreachable!("{done:?}")
    };
    done.settle_as(Decision::Wait(wait.clone())).await;
    bench.env.advance(Duration::from_secs(11));
    assert_eq!(bench.env.promote().await, [done.job.id]);
    let again = bench.run_next(None).await;
    let text = again.result()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("nobody answered in time"), "{text}");
    assert!(again.names().contains(&"approval.answered"), "{:?}", again.names());
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_interrupted_turn_goes_on_after_its_last_finished_call(pool: PgPool) {
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [{"text": "One."}, call("bash", &json!({"command": "echo once >> log"}))]},
            {"when": {"step": 1}, "reply": [{"text": "Two."}, call("bash", &json!({"command": "echo start; sleep 300"}))]},
        ]),
    )
    .await;
    let done = bench
        .run_until(&run_of(&bench, &json!(["bash"])), Some(("tool.output", Stop::Drain)))
        .await;
    assert!(matches!(done.ended.outcome, Outcome::Interrupted), "{done:?}");
    done.settle_as(Decision::GiveBack).await;
    bench.env.redispatch().await;
    let again = bench.run_next(Some(("tool.output", Stop::Cancel))).await;
    let texts: Vec<String> = again.ended.messages.iter().map(Message::text).collect();
    assert_eq!(texts[0], "One.");
    assert_eq!(texts[2], "Two.");
    let resumed = again.said.iter().find_map(|body| match body {
        EventBody::Status { phase, detail } if phase == "resumed" => detail.clone(),
        _ => None,
    });
    let resumed = resumed.unwrap();
    assert!(
        resumed.contains("after 1 finished steps") && resumed.contains("1 tool calls"),
        "{resumed}"
    );
    // The attempt before is gone from the log, so all of it is said again.
    let messages = again
        .said
        .iter()
        .filter(|body| matches!(body, EventBody::Message { .. }));
    assert_eq!(messages.count(), again.ended.messages.len());
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_whose_budgets_cannot_be_read_is_given_back(pool: PgPool) {
    let options = PgPool::connect_options(&pool).as_ref().clone();
    let of_books = sqlx::postgres::PgPoolOptions::new().connect_lazy_with(options);
    let (mut bench, _folder) = bench(pool, &json!([{"reply": [{"text": "done"}]}])).await;
    let books = || Books::open(&model::Settings::default(), Store::from_pool(of_books.clone())).unwrap();
    bench.machine.books = books();
    let run_of = |bench: &Bench, harness: &str| {
        let agent = json!({"harness": harness, "models": ["scripted/test"], "command": (harness == "command").then_some(["true"]),
            "budget": {"max_output_tokens": 1_000}});
        bench.job(JobSpec::new(Kind::AgentRun), &json!({"input": "go", "agent": agent}))
    };
    let done = bench.run(&run_of(&bench, "chat")).await;
    assert_eq!(
        done.result(),
        json!({"text": "done", "steps": 1, "stop_reason": "end_turn"})
    );

    // What the tenant has set is known, so it is the call itself that cannot be made.
    of_books.close().await;
    let done = bench.run(&run_of(&bench, "chat")).await;
    assert!(matches!(done.ended.outcome, Outcome::Interrupted), "{done:?}");
    assert_eq!(done.any_result()["steps"], 0);

    bench.machine.books = books();
    for harness in ["chat", "command"] {
        let done = bench.run(&run_of(&bench, harness)).await;
        assert!(matches!(done.ended.outcome, Outcome::Interrupted), "{done:?}");
        assert_eq!(done.ended.result, None);
    }
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_agent_says_how_long_an_answer_may_be(pool: PgPool) {
    let server = ModelServer::demo().await;
    let settings = model::Settings {
        anthropic: server.settings(),
        ..model::Settings::default()
    };
    let bench = Bench::new(pool, settings, |_| {}).await;
    for agent in [
        json!({"harness": "chat", "models": ["anthropic/demo"]}),
        json!({"harness": "chat", "models": ["anthropic/demo"], "max_answer_tokens": 1_000}),
    ] {
        let input = json!({"input": "go", "agent": agent});
        bench
            .run(&bench.job(JobSpec::new(Kind::AgentRun), &input))
            .await
            .result();
    }
    let asked: Vec<Value> = server
        .requests()
        .into_iter()
        .map(|(_, body)| body["max_tokens"].clone())
        .collect();
    assert_eq!(asked, [8_192, 1_000]);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_word_in_between_is_heard_before_the_next_step(pool: PgPool) {
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"user_contains": "turn left"}, "reply": [{"text": "Left it is."}]},
            {"when": {"step": 0}, "reply": [call("bash", &json!({"command": "echo ready; until [ -e go ]; do sleep 0.05; done"}))]},
            {"reply": [{"text": "I was told nothing."}]},
        ]),
    )
    .await;
    let job = run_of(&bench, &json!([{"name": "bash", "policy": "ask"}]));
    let done = bench.run(&job).await;
    let Outcome::Waits(wait) = &done.ended.outcome else {
        unreachable!("{done:?}")
    };
    done.settle_as(Decision::Wait(wait.clone())).await;
    let word = Message::user("turn left", bench.env.clock.now());
    assert!(
        bench
            .env
            .store
            .steer(done.job.tenant_id, done.job.id, &word)
            .await
            .unwrap()
    );
    answer(&bench, 0, &done, false, None).await;
    let again = bench.run_next(None).await;
    assert_eq!(again.result()["text"], "Left it is.");
    assert!(
        again
            .ended
            .messages
            .iter()
            .any(|message| message.id == word.id && message.job_id.is_none())
    );
    let late = Message::user("again", bench.env.clock.now());
    again.settle().await;
    assert!(
        !bench
            .env
            .store
            .steer(done.job.tenant_id, done.job.id, &late)
            .await
            .unwrap()
    );
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_go_in_with_a_run(pool: PgPool) {
    let (bench, _folder) = bench(
        pool,
        &json!([
            {"when": {"step": 0}, "reply": [call("python", &json!({"code": "print(open('d/in.txt').read(), open('a.gif','rb').read())"}))]},
            {"reply": [{"text": "{{output}}"}]},
        ]),
    )
    .await;
    let agent = json!({"models": ["scripted/test"], "tools": ["python"]});
    let files = json!([{"path": "d/in.txt", "content": "given"}, {"path": "a.gif", "content_base64": "R0lGODlh"}]);
    let input = json!({"input": "go", "agent": agent, "files": files});
    let done = bench.run(&bench.job(JobSpec::new(Kind::AgentRun), &input)).await;
    assert!(
        done.result()["text"].as_str().unwrap().contains("given b'GIF89a'"),
        "{done:?}"
    );
    bench.end().await;
}
