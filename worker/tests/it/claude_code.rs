//! The `claude_code` harness: the real command line, whole attempts, the scripted provider behind the gateway.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use common::agent::{AgentDefinition, Harness};
use common::job::FailureCode;
use common::job::decision::Outcome;
use common::job::event::EventBody;
use common::message::{Message, Part, Role};
use serde_json::json;
use sqlx::PgPool;
use tempfile::TempDir;
use worker::consumer::held::Stop;
use worker::driver::Profile;
use worker::environment::{CLAUDE_CODE, Environment};
use worker::model;

use crate::attempts::{Bench, Done};
use crate::docker::test_variable;
use crate::workspaces::{conversation, turn_of};

/// What the models say. The command line's own words stand around the user's.
fn scripts() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bash = |command: &str| json!({"tool_call": {"name": "Bash", "input": {"command": command, "description": "a command"}}});
    let script = json!({"piece_chars": 4, "rules": [
        {"when": {"user_contains": "write a file", "step": 0}, "reply": [
            {"reasoning": "a file, then"}, {"text": "I shall write it."}, bash("echo content > note.txt; echo $((6 * 7))")]},
        {"when": {"user_contains": "write a file"}, "reply": [{"text": "It printed {{output}}"}]},
        {"when": {"user_contains": "what did I say"}, "reply": [{"text": "You said: {{user}}"}]},
        {"when": {"user_contains": "for ever"}, "reply": [{"text": "again "}, bash("true")]},
        {"when": {"user_contains": "slowly"}, "reply": [{"text": "one moment "}, {"wait": "60s"}, {"text": "done"}]},
        {"when": {"user_contains": "refuse"}, "reply": [
            {"error": {"status": 400, "kind": "invalid_request_error", "message": "this cannot be answered"}}]},
    ]});
    std::fs::write(folder.path().join("claude.json"), script.to_string()).unwrap();
    folder
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

fn agent() -> AgentDefinition {
    AgentDefinition {
        harness: Harness::ClaudeCode,
        instructions: "be brief".to_owned(),
        models: vec!["scripted/claude".to_owned()],
        ..AgentDefinition::default()
    }
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
