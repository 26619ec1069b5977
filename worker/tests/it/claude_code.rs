//! The `claude_code` harness: the real command line, whole attempts, the scripted provider behind the gateway.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use common::agent::{AgentDefinition, Budget, Harness};
use common::ids::{ConversationId, JobId};
use common::job::FailureCode;
use common::job::decision::Outcome;
use common::job::event::EventBody;
use common::job::spec::{JobSpec, Kind};
use common::message::{Message, Part, Role};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use worker::consumer::held::Stop;
use worker::driver::Profile;
use worker::environment::{CLAUDE_CODE, Environment};
use worker::model;
use worker::model::scripted::Scripted;
use worker::model::scripted::script::Script;
use worker::pool::EnvironmentStatus;

use crate::attempts::{Bench, Done};
use crate::docker::{eventually, test_variable};
use crate::model_server::ModelServer;
use crate::workspaces::{conversation, turn_of};

/// What the models say. The command line's own words stand around the user's.
fn script() -> Value {
    let bash = |command: &str| json!({"tool_call": {"name": "Bash", "input": {"command": command, "description": "a command"}}});
    json!({"piece_chars": 4, "rules": [
        {"when": {"user_contains": "write a file", "step": 0}, "reply": [
            {"reasoning": "a file, then"}, {"text": "I shall write it."}, bash("echo content > note.txt; echo $((6 * 7))")]},
        {"when": {"user_contains": "write a file"}, "reply": [{"text": "It printed {{output}}"}]},
        {"when": {"user_contains": "what did I say"}, "reply": [{"text": "You said: {{user}}"}]},
        {"when": {"user_contains": "for ever"}, "reply": [{"text": "again "}, bash("true")]},
        {"when": {"user_contains": "slowly"}, "reply": [{"text": "one moment "}, {"wait": "60s"}, {"text": "done"}]},
        {"when": {"user_contains": "take the zebra", "step": 0}, "reply": [
            bash("cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -m 1 ^ANTHROPIC_API_KEY= | cut -d= -f2 | tee token.txt")]},
        {"when": {"user_contains": "show the zebra", "step": 0}, "reply": [
            bash(&format!("cat > probe.py <<'END'\n{PROBE}END\npython3 probe.py \"$(cat token.txt)\""))]},
        {"when": {"user_contains": "take the zebra"}, "reply": [{"text": "{{output}}"}]},
        {"when": {"user_contains": "show the zebra"}, "reply": [{"text": "{{output}}"}]},
        {"when": {"user_contains": "rather"}, "reply": [{"text": "You said: {{user}}"}]},
        {"when": {"user_contains": "sleep long"}, "reply": [{"text": "Soon. "}, bash("sleep 100; echo rested")]},
        {"when": {"user_contains": "nap", "step": 0}, "reply": [{"text": "Soon. "}, bash("sleep 3; echo rested")]},
        {"when": {"user_contains": "nap"}, "reply": [{"text": "Awake: {{output}}"}]},
        {"when": {"user_contains": "speak"}, "reply": [{"text": "one moment "}, {"wait": "3s"}, {"text": "done"}]},
        {"when": {"user_contains": "look at", "step": 0}, "reply": [bash("cat data/a.txt")]},
        {"when": {"user_contains": "look at"}, "reply": [{"text": "It says {{output}}"}]},
        {"when": {"user_contains": "refuse"}, "reply": [
            {"error": {"status": 400, "kind": "invalid_request_error", "message": "this cannot be answered"}}]},
    ]})
}

fn scripts() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("claude.json"), script().to_string()).unwrap();
    folder
}

/// The same as a server's, which tells what it was asked.
pub(crate) fn scripted() -> Scripted {
    let script: Script = serde_json::from_value(script()).unwrap();
    Scripted::built_in()
        .with("claude", script.clone())
        .with("other", script)
}

pub(crate) fn of_server(server: &ModelServer) -> model::Settings {
    model::Settings {
        anthropic: server.settings(),
        ..model::Settings::default()
    }
}

fn settings(scripts: &Path) -> model::Settings {
    model::Settings {
        scripts: Some(scripts.to_owned()),
        ..model::Settings::default()
    }
}

fn environment(environment: &mut Environment) {
    let image =
        test_variable("HOTHOUSE_TEST_CLAUDE_CODE_IMAGE").unwrap_or_else(|| "hothouse/claude-code:current".to_owned());
    *environment = environment.clone().with_image(image);
    CLAUDE_CODE.clone_into(&mut environment.name);
    environment.profile = Profile {
        memory_bytes: 2 << 30,
        pids: 256,
        ..Profile::default()
    };
}

pub(crate) fn agent() -> AgentDefinition {
    AgentDefinition {
        harness: Harness::ClaudeCode,
        instructions: "be brief".to_owned(),
        models: vec!["scripted/claude".to_owned()],
        ..AgentDefinition::default()
    }
}

/// How the process of a turn came to be.
pub(crate) fn how(done: &Done) -> &str {
    let detail = |body: &'_ EventBody| match body {
        EventBody::Status { phase, detail } if phase == "running" => detail.clone(),
        _ => None,
    };
    match done.said.iter().find_map(detail).as_deref() {
        Some("kept") => "kept",
        Some("waiting") => "waiting",
        Some("resumed") => "resumed",
        Some("started") => "started",
        other => panic!("{other:?}: {done:#?}"),
    }
}

pub(crate) fn status(bench: &Bench) -> EnvironmentStatus {
    bench.machine.pool.as_ref().unwrap().status().remove(0)
}

/// Environments in which one process waits once somebody has asked for one.
pub(crate) fn with_spare(it: &mut Environment) {
    environment(it);
    it.warm.claude_code = 1;
}

/// What the model was sent: of each request, its whole text.
fn requests(server: &ModelServer) -> Vec<String> {
    let requests = server.requests();
    requests.iter().map(|(_, body)| body.to_string()).collect()
}

fn streamed(done: &Done) -> String {
    let text = |body: &EventBody| match body {
        EventBody::MessageDelta { text } => Some(text.clone()),
        _ => None,
    };
    done.said.iter().filter_map(text).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_of_the_real_command_line_and_the_next_one_remembers(pool: PgPool) {
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), environment).await;
    let talk = conversation(&bench, &pool).await;
    let done = turn_of(&bench, talk, &agent(), "please write a file", None).await;
    let result = done.result();
    assert_eq!(
        (&result["text"], &result["steps"]),
        (&json!("It printed 42"), &json!(2))
    );
    let messages: Vec<(Role, usize)> = done.ended.messages.iter().map(|m| (m.role, m.parts.len())).collect();
    assert_eq!(messages, [(Role::Assistant, 3), (Role::User, 1), (Role::Assistant, 1)]);
    assert_matches!(&done.ended.messages[0].parts[0], Part::Reasoning { text, .. } if text == "a file, then");
    assert_matches!(&done.ended.messages[1].parts[0], Part::ToolResult { output, is_error: false, .. } if output == "42");
    assert_eq!(streamed(&done), "I shall write it.It printed 42");
    let names = done.names();
    let wanted = [
        "status",
        "reasoning.delta",
        "message.delta",
        "tool.started",
        "tool.finished",
        "usage",
        "message",
    ];
    assert!(wanted.iter().all(|name| names.contains(name)), "{names:?}");
    // What it used is what passed through the gateway, and a call of its has a row.
    assert_eq!(names.iter().filter(|name| **name == "usage").count(), 2);
    assert!(done.ended.usage.input_tokens > 1_000 && done.ended.usage.output_tokens > 0);
    done.settle().await;

    // On another worker: the file and the program's own memory have come along.
    let there = bench.beside(&settings(scripts.path()), environment);
    let done = turn_of(&there, talk, &agent(), "and now: what did I say?", None).await;
    assert!(done.result()["text"].as_str().unwrap().contains("and now"), "{done:#?}");
    // Its transcript was resumed: nothing was told again in front of the prompt.
    assert!(
        !streamed(&done).contains("The conversation so far"),
        "{}",
        streamed(&done)
    );
    assert!(done.ended.usage.input_tokens > 0);
    done.settle().await;
    let list = AgentDefinition {
        harness: Harness::Command,
        environment: CLAUDE_CODE.to_owned(),
        command: Some(
            ["sh", "-c", "cat note.txt; ls .hothouse/claude/projects/*"]
                .map(str::to_owned)
                .into(),
        ),
        ..AgentDefinition::default()
    };
    let done = turn_of(&there, talk, &list, "list", None).await;
    let text = done.result()["text"].as_str().unwrap().to_owned();
    assert!(
        text.starts_with("content\n") && text.contains(&format!("{talk}.jsonl")),
        "{text}"
    );
    there.end().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_process_stays_for_the_next_turn_alone(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), environment).await;
    let talk = conversation(&bench, &pool).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let first = turn_of(&bench, talk, &agent, "please write a file", None).await;
    assert_eq!(how(&first), "started");
    assert!(first.ended.usage.cpu_ms > 100 && first.ended.usage.memory_peak_bytes > 50 << 20);
    first.settle().await;
    assert_eq!(status(&bench).kept, 1);
    let asked = server.requests().len();

    let second = turn_of(&bench, talk, &agent, "what did I say now", None).await;
    assert_eq!(how(&second), "kept");
    assert!(second.result()["text"].as_str().unwrap().contains("what did I say now"));
    assert_eq!(second.any_result()["exit_code"], json!(null));
    second.settle().await;
    // It remembers the turn before, and is itself the only memory.
    let sent = requests(&server).split_off(asked);
    assert_eq!(sent.len(), 1, "{sent:#?}");
    assert!(
        sent[0].contains("please write a file") && sent[0].contains("It printed 42"),
        "{sent:#?}"
    );
    assert!(!sent[0].contains("The conversation so far"));

    // One that is told something else is another one; it resumes what the first has written down.
    let other = AgentDefinition {
        instructions: "be verbose".to_owned(),
        ..agent
    };
    let third = turn_of(&bench, talk, &other, "what did I say then", None).await;
    assert_eq!(how(&third), "resumed");
    assert!(requests(&server).last().unwrap().contains("what did I say now"));
    third.settle().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_process_that_waits_takes_a_first_turn_and_is_found_again(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), with_spare).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let before = conversation(&bench, &pool).await;
    let done = turn_of(&bench, before, &agent, "what did I say first", None).await;
    assert_eq!(how(&done), "started", "nobody had asked for one before");
    done.settle().await;
    eventually("a process to wait", async || status(&bench).spares == 1).await;

    let talk = conversation(&bench, &pool).await;
    let done = turn_of(&bench, talk, &agent, "please write a file", None).await;
    assert_eq!(how(&done), "waiting");
    assert_eq!(done.result()["text"], "It printed 42");
    let sent = requests(&server);
    assert!(sent.iter().all(|sent| sent.contains("be brief")), "{sent:#?}");
    assert!(!sent.last().unwrap().contains("what did I say first"), "{sent:#?}");
    assert!(!sent.iter().any(|sent| sent.contains("rehearsal")), "{sent:#?}");
    done.settle().await;

    // Elsewhere its session is found by what was noted, not by its id.
    let there = bench.beside(&of_server(&server), environment);
    let done = turn_of(&there, talk, &agent, "what did I say next", None).await;
    assert_eq!(how(&done), "resumed");
    let last = requests(&server).pop().unwrap();
    assert!(
        last.contains("please write a file") && !last.contains("The conversation so far"),
        "{last}"
    );
    done.settle().await;

    // Another model is another recipe: what waits is of no use to it, and is not used.
    eventually("a process to wait", async || status(&bench).spares == 1).await;
    let talk = conversation(&bench, &pool).await;
    let other = AgentDefinition {
        models: vec!["anthropic/other".to_owned()],
        ..agent
    };
    let done = turn_of(&bench, talk, &other, "what did I say here", None).await;
    assert_eq!(how(&done), "started");
    assert_eq!(
        done.result()["text"].as_str().map(|text| text.contains("here")),
        Some(true)
    );
    there.end().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_conversation_that_another_harness_began_is_told(pool: PgPool) {
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), environment).await;
    let talk = conversation(&bench, &pool).await;
    let echo = AgentDefinition {
        harness: Harness::Command,
        environment: CLAUDE_CODE.to_owned(),
        command: Some(["echo", "a blue elephant"].map(str::to_owned).into()),
        ..AgentDefinition::default()
    };
    turn_of(&bench, talk, &echo, "name an animal", None)
        .await
        .settle()
        .await;
    let done = turn_of(&bench, talk, &agent(), "what did I say?", None).await;
    let text = done.result()["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains("User: name an animal") && text.contains("Assistant: a blue elephant"),
        "{text}"
    );
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_that_is_cancelled_is_interrupted_and_kept(pool: PgPool) {
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), environment).await;
    let talk = conversation(&bench, &pool).await;
    let begun = Instant::now();
    let done = turn_of(
        &bench,
        talk,
        &agent(),
        "do it slowly",
        Some(("message.delta", Stop::Cancel)),
    )
    .await;
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_matches!(done.ended.outcome, Outcome::Cancelled);
    let last: &Message = done.ended.messages.last().unwrap();
    assert_eq!(
        last.parts.last(),
        Some(&Part::Status {
            text: "cancelled".to_owned()
        })
    );
    assert!(last.text().starts_with("one moment"), "{last:?}");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_goes_wrong_has_its_reason(pool: PgPool) {
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), environment).await;
    let talk = conversation(&bench, &pool).await;
    let done = turn_of(&bench, talk, &agent(), "refuse this", None).await;
    let (code, message) = done.failure();
    assert!(
        code == FailureCode::ModelFailed && message.contains("this cannot be answered"),
        "{message}"
    );
    done.settle().await;

    let few = AgentDefinition {
        max_steps: 2,
        ..agent()
    };
    let done = turn_of(&bench, talk, &few, "go on for ever", None).await;
    assert_eq!(done.failure().0, FailureCode::MaxSteps);
    done.settle().await;

    let other = AgentDefinition {
        models: vec!["openai/gpt".to_owned()],
        ..agent()
    };
    let done = turn_of(&bench, talk, &other, "x", None).await;
    assert_ne!(done.failure().0, FailureCode::SandboxFailed);
    bench.end().await;
}

/// A program named as the command line, made by a turn of the same conversation.
async fn stand_in(bench: &Bench, talk: ConversationId, script: &str) {
    let make = format!("mkdir -p bin; printf '#!/bin/sh\\n%s' '{script}' > bin/claude; chmod +x bin/claude");
    let agent = AgentDefinition {
        harness: Harness::Command,
        environment: CLAUDE_CODE.to_owned(),
        command: Some(["sh", "-c", &make].map(str::to_owned).into()),
        ..AgentDefinition::default()
    };
    let done = turn_of(bench, talk, &agent, "make it", None).await;
    done.result();
    done.settle().await;
}

fn with_stand_in(it: &mut Environment) {
    environment(it);
    it.env.insert(
        "PATH".to_owned(),
        "/workspace/bin:/usr/local/bin:/usr/bin:/bin".to_owned(),
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_program_that_hangs_is_given_up(pool: PgPool) {
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), with_stand_in).await;
    let bench = bench.with_silence(Duration::from_millis(1500));
    let talk = conversation(&bench, &pool).await;
    // Silent from the beginning, and after a first word; it hears no signal that can be refused.
    let hanging = r#"trap "" TERM INT; echo "{\"type\":\"system\",\"subtype\":\"init\"}"; sleep 600 & wait; sleep 600"#;
    for script in ["sleep 600", hanging] {
        stand_in(&bench, talk, script).await;
        let begun = Instant::now();
        let done = turn_of(&bench, talk, &agent(), "hello", None).await;
        let message = "Claude Code said nothing for 1s 500ms";
        assert_eq!(done.failure(), (FailureCode::SandboxFailed, message));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        done.settle().await;
    }
    // One that has said its result has taken its turn, whatever it does then.
    let result = r#"echo "{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"x\",\"num_turns\":1}""#;
    stand_in(&bench, talk, &format!("{result}; exec sleep 600")).await;
    let done = turn_of(&bench, talk, &agent(), "hello", None).await;
    assert_eq!((how(&done), &done.result()["steps"]), ("started", &json!(1)));
    done.settle().await;
    // It stayed, and does not answer the next one: that is its own failure, and another one is started then.
    let done = turn_of(&bench, talk, &agent(), "hello again", None).await;
    assert_eq!(how(&done), "kept");
    assert_eq!(done.failure().0, FailureCode::SandboxFailed);
    done.settle().await;
    let done = turn_of(&bench, talk, &agent(), "hello again", None).await;
    assert_eq!((how(&done), &done.result()["steps"]), ("started", &json!(1)));
    // One that ends without a word says what it complained of.
    done.settle().await;
    stand_in(&bench, talk, "echo no room >&2; exit 3").await;
    let done = turn_of(&bench, talk, &agent(), "hello", None).await;
    assert_eq!(
        done.failure(),
        (FailureCode::NonzeroExit, "it ended with exit code 3: no room")
    );
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_model_that_falls_silent_does_not_hold_the_turn(pool: PgPool) {
    let stall: Script = serde_json::from_value(json!({"rules": [{"reply": [{"text": "so "}, "stall"]}]})).unwrap();
    let server = ModelServer::start(Scripted::built_in().with("claude", stall)).await;
    let mut settings = of_server(&server);
    settings.anthropic.silence_timeout = Duration::from_secs(2);
    let bench = Bench::new(pool.clone(), settings, environment).await;
    let talk = conversation(&bench, &pool).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let begun = Instant::now();
    let done = turn_of(&bench, talk, &agent, "hello", None).await;
    assert_eq!(done.failure().0, FailureCode::ModelFailed);
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    assert!(streamed(&done).starts_with("so "), "{done:#?}");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tool_call_that_is_cancelled_is_over_and_the_conversation_goes_on(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), environment).await;
    let talk = conversation(&bench, &pool).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let done = turn_of(&bench, talk, &agent, "sleep long", Some(("tool.started", Stop::Cancel))).await;
    assert_matches!(done.ended.outcome, Outcome::Cancelled);
    let mut history = vec![Message::user("sleep long", bench.env.clock.now())];
    history.extend(done.ended.messages.clone());
    let open: Vec<&Message> = history
        .iter()
        .filter(|message| message.tool_calls().count() > 0)
        .collect();
    assert_eq!(open.len(), 1, "{history:#?}");
    done.settle().await;
    // What it was asked and did before it was stopped is in its own memory, or is told.
    let done = turn_of(&bench, talk, &agent, "what did I say now", None).await;
    assert_eq!(
        done.any_result()["text"].as_str().map(|text| text.contains("now")),
        Some(true)
    );
    let last = requests(&server).pop().unwrap();
    assert!(last.contains("sleep long"), "{last}");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_said_to_a_turn_under_way_is_heard(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), environment).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    // Between two steps, and while it gives its last answer, which is not the last then.
    for (prompt, event) in [("take a nap", "tool.started"), ("speak up", "message.delta")] {
        let talk = conversation(&bench, &pool).await;
        let turn = turn_of(&bench, talk, &agent, prompt, None);
        let steer = async {
            let job = eventually_some(async || running(&bench, talk).await).await;
            eventually("the turn to be under way", async || {
                let events = bench.env.events(bench.env.tenant_id, job, 1000).await;
                events.iter().any(|event_| event_.body.name() == event)
            })
            .await;
            let message = Message::user("rather what did I say", bench.env.clock.now());
            assert!(bench.env.store.steer(bench.env.tenant_id, job, &message).await.unwrap());
            message
        };
        let (done, message) = tokio::join!(turn, steer);
        done.result();
        let heard: Vec<&Message> = done
            .ended
            .messages
            .iter()
            .filter(|said| said.id == message.id)
            .collect();
        assert_eq!(heard.len(), 1, "{:#?}", done.ended.messages);
        assert_eq!(done.ended.messages.last().unwrap().role, Role::Assistant);
        let last = requests(&server).pop().unwrap();
        assert!(last.contains("rather what did I say"), "{last}");
    }
    bench.end().await;
}

async fn eventually_some<T>(find: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..2_000 {
        if let Some(found) = find().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s");
}

async fn running(bench: &Bench, talk: ConversationId) -> Option<JobId> {
    let talk = bench.env.store.conversation(bench.env.tenant_id, talk).await.unwrap();
    talk.and_then(|talk| talk.active_job_id)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_budget_that_is_used_up_ends_the_turn_with_its_name(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), environment).await;
    let talk = conversation(&bench, &pool).await;
    let agent = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        budget: Budget {
            max_output_tokens: Some(60),
            ..Budget::default()
        },
        ..agent()
    };
    let done = turn_of(&bench, talk, &agent, "go on for ever", None).await;
    let (code, message) = done.failure();
    assert_eq!(code, FailureCode::BudgetExceeded, "{message}");
    assert!(message.contains("output tokens are left"), "{message}");
    // It went as far as it could: calls were made for shorter and shorter answers.
    let asked: Vec<u64> = server
        .requests()
        .iter()
        .filter_map(|(_, body)| body["max_tokens"].as_u64())
        .collect();
    assert!(asked.len() > 1 && asked[0] == 60, "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] < pair[0]), "{asked:?}");
    assert!(done.ended.usage.output_tokens <= 60);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_of_a_run_are_there_and_images_are_seen(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), environment).await;
    let files = json!([{"path": "data/a.txt", "content": "from a file"},
        {"path": "dot.png", "content_base64": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="}]);
    let run = |agent: Value| {
        let mut spec = JobSpec::new(Kind::AgentRun);
        spec.timeout = Duration::from_mins(2);
        bench.job(
            spec,
            &json!({"input": "look at the file", "agent": agent, "files": files}),
        )
    };
    let claude = json!({"harness": "claude_code", "models": ["anthropic/claude"], "environment": CLAUDE_CODE});
    let done = bench.run(&run(claude)).await;
    assert_eq!(done.result()["text"], "It says from a file");
    let first = server.requests().remove(0).1;
    let text = first["messages"].to_string();
    assert!(
        text.contains("\"type\":\"image\"") && text.contains("[File in the workspace: data/a.txt]"),
        "{text}"
    );
    let command = json!({"harness": "command", "command": ["sh", "-c", "cat data/a.txt; ls dot.png"],
        "environment": CLAUDE_CODE});
    let done = bench.run(&run(command)).await;
    assert_eq!(done.result()["text"], "from a filedot.png\n");
    bench.end().await;
}

/// What its tools printed.
fn printed(done: &Done) -> String {
    done.result();
    let output = |body: &EventBody| match body {
        EventBody::ToolFinished { output, .. } => output.as_str().map(str::to_owned),
        _ => None,
    };
    let printed: Vec<String> = done.said.iter().filter_map(output).collect();
    printed.join("\n").trim().to_owned()
}

/// Asks the gateway with a token of one's own choice; prints the status.
const PROBE: &str = "\
import os, sys, urllib.request, urllib.error
request = urllib.request.Request(os.environ['ANTHROPIC_BASE_URL'] + '/v1/models', headers={'x-api-key': sys.argv[1].strip()})
try: print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
except urllib.error.HTTPError as error: print(error.code)
";

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_token_that_was_taken_along_opens_nothing(pool: PgPool) {
    let server = ModelServer::start(scripted()).await;
    let bench = Bench::new(pool.clone(), of_server(&server), |it| {
        environment(it);
        it.warm.max = 3;
    })
    .await;
    let talk = conversation(&bench, &pool).await;
    let claude = AgentDefinition {
        models: vec!["anthropic/claude".to_owned()],
        ..agent()
    };
    let probe = |argument: &str| AgentDefinition {
        harness: Harness::Command,
        environment: CLAUDE_CODE.to_owned(),
        models: vec!["anthropic/claude".to_owned()],
        command: Some(["python3", "-c", PROBE, argument].map(str::to_owned).into()),
        ..AgentDefinition::default()
    };
    let text = |done: &Done| done.result()["text"].as_str().unwrap().trim().to_owned();
    let done = turn_of(&bench, talk, &claude, "take the zebra", None).await;
    let token = printed(&done);
    assert!(token.starts_with("hothouse-"), "{token}");
    done.settle().await;

    // In another sandbox, of the same tenant even.
    let other = conversation(&bench, &pool).await;
    let done = turn_of(&bench, other, &probe(&token), "x", None).await;
    assert_eq!(text(&done), "401");
    done.settle().await;
    // It is that of the process: it is good for the turn that the process serves, and metered there.
    let done = turn_of(&bench, talk, &claude, "show the zebra", None).await;
    assert_eq!((how(&done), printed(&done)), ("kept", "200".to_owned()));
    done.settle().await;
    // Without the process it is nothing, in the same sandbox and for the same conversation.
    let again = AgentDefinition {
        instructions: "be verbose".to_owned(),
        ..claude
    };
    let done = turn_of(&bench, talk, &again, "show the zebra", None).await;
    assert_eq!((how(&done), printed(&done)), ("resumed", "401".to_owned()));
    done.settle().await;
    let done = turn_of(&bench, talk, &probe(&token), "x", None).await;
    assert_eq!(text(&done), "401");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn twenty_turns_at_once_are_all_taken(pool: PgPool) {
    const TURNS: usize = 20;
    let scripts = scripts();
    let bench = Bench::new(pool.clone(), settings(scripts.path()), |it| {
        environment(it);
        it.warm.max = 20;
    })
    .await;
    let mut talks = Vec::new();
    for _ in 0..TURNS {
        talks.push(conversation(&bench, &pool).await);
    }
    let agent = agent();
    let turns = talks
        .iter()
        .map(|talk| turn_of(&bench, *talk, &agent, "please write a file", None));
    let done = futures_util::future::join_all(turns).await;
    let mut jobs: Vec<JobId> = done.iter().map(|done| done.job.id).collect();
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs.len(), TURNS);
    for done in &done {
        assert_eq!(done.result()["text"], "It printed 42");
    }
    // All but the one that made room for the next that comes.
    assert!(status(&bench).kept >= 19);
    bench.end().await;
}
