//! The `command` harness through whole attempts in real sandboxes.

use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use common::job::decision::Outcome;
use common::job::event::EventBody;
use common::job::spec::{JobSpec, Kind};
use common::job::{FailureCode, NewJob};
use common::message::{Message, Part, Role};
use serde_json::{Value, json};
use sqlx::PgPool;
use worker::consumer::held::Stop;
use worker::model;

use crate::attempts::Bench;

async fn bench(pool: PgPool) -> Bench {
    Bench::new(pool, model::Settings::default(), |_| {}).await
}

fn job(bench: &Bench, command: &Value, prompt: &str, timeout: Duration) -> NewJob {
    let mut spec = JobSpec::new(Kind::AgentRun);
    spec.timeout = timeout;
    let agent = json!({"harness": "command", "command": command, "instructions": "be brief"});
    bench.job(spec, &json!({"input": prompt, "agent": agent}))
}

fn shape(messages: &[Message]) -> Vec<(Role, usize)> {
    messages
        .iter()
        .map(|message| (message.role, message.parts.len()))
        .collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_program_prints_is_the_answer(pool: PgPool) {
    let bench = bench(pool).await;
    let script =
        "read -r line; echo \"you said: $line\"; echo oops >&2; echo '{\"type\":\"text\",\"text\":\"no event\"}'";
    let done = bench
        .run(&job(
            &bench,
            &json!(["bash", "-c", script]),
            "grüß €\n",
            Duration::from_secs(30),
        ))
        .await;
    let text = "you said: grüß €\n{\"type\":\"text\",\"text\":\"no event\"}\n";
    assert_eq!(done.result()["text"], text);
    assert_eq!(done.ended.messages[0].parts, [Part::text(text)]);
    let (mut deltas, mut complaints) = (String::new(), String::new());
    for body in &done.said {
        match body {
            EventBody::MessageDelta { text } => deltas.push_str(text),
            EventBody::Stderr { text } => complaints.push_str(text),
            _ => {}
        }
    }
    assert_eq!((deltas.as_str(), complaints.as_str()), (text, "oops\n"));
    assert!(done.ended.usage.sandbox_ms > 0 && done.ended.usage.memory_peak_bytes > 0);

    // The prompt as an argument is one word, whatever it holds.
    let command = json!(["printf", "%s|%s", "--text={prompt}", "{instructions}"]);
    let done = bench
        .run(&job(&bench, &command, "; rm -rf / $(id)", Duration::from_secs(30)))
        .await;
    assert_eq!(done.result()["text"], "--text=; rm -rf / $(id)|be brief");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_program_that_says_so_prints_events(pool: PgPool) {
    let bench = bench(pool).await;
    let script = r#"
import json, os, sys
say = lambda kind, **fields: print(json.dumps({"type": kind, **fields}), flush=True)
say("hothouse", version=1)
turn = json.load(open(os.environ["HOTHOUSE_TURN"]))
say("reasoning", text="hm")
say("text", text=turn["instructions"])
say("tool_call", id="c1", name="bash", input={"command": "ls"})
say("tool_output", id="c1", text="a\n")
say("tool_result", id="c1", output="a\n")
print("a library's own words")
say("usage", model="mine/m", input_tokens=3, output_tokens=4)
say("status", phase="almost", detail="there")
say("text", text=turn["messages"][-1]["parts"][0]["text"] + " " + os.environ["HOTHOUSE_JOB_ID"])
"#;
    let done = bench
        .run(&job(
            &bench,
            &json!(["python3", "-c", script]),
            "hello",
            Duration::from_secs(30),
        ))
        .await;
    assert_eq!(done.result()["text"], format!("hello {}", done.job.id));
    assert_eq!(
        shape(&done.ended.messages),
        [(Role::Assistant, 3), (Role::User, 1), (Role::Assistant, 1)]
    );
    let names = done.names();
    let wanted = [
        "reasoning.delta",
        "tool.started",
        "tool.output",
        "tool.finished",
        "stdout",
        "usage",
        "message",
    ];
    assert!(wanted.iter().all(|name| names.contains(name)), "{names:?}");
    let claimed = done.said.iter().find_map(|body| match body {
        EventBody::Usage { usage } => Some(usage.clone()),
        _ => None,
    });
    // Shown as the program's claim, and not counted.
    assert_eq!(claimed.unwrap()["reported_by"], "program");
    assert_eq!(done.ended.usage.output_tokens, 0);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn how_a_program_ends_is_how_its_turn_ends(pool: PgPool) {
    let bench = bench(pool).await;
    let script = "echo '{\"type\":\"hothouse\",\"version\":1}'; echo '{\"type\":\"text\",\"text\":\"half\"}'; \
                  echo '{\"type\":\"error\",\"message\":\"no luck\"}'; exit 3";
    let done = bench
        .run(&job(
            &bench,
            &json!(["bash", "-c", script]),
            "x",
            Duration::from_secs(30),
        ))
        .await;
    let message = "it ended with exit code 3: no luck";
    assert_eq!(done.failure(), (FailureCode::NonzeroExit, message));
    let note = Part::Status {
        text: message.to_owned(),
    };
    assert_eq!(done.ended.messages[0].parts, [Part::text("half"), note]);

    let done = bench
        .run(&job(&bench, &json!(["sleep", "60"]), "x", Duration::from_millis(300)))
        .await;
    assert_eq!(done.failure().0, FailureCode::Timeout);
    let done = bench
        .run(&job(&bench, &json!(["/no/such/program"]), "x", Duration::from_secs(30)))
        .await;
    assert_eq!(done.failure().0, FailureCode::InvalidInput);
    let done = bench
        .run(&job(
            &bench,
            &json!(["echo", "{prompt}"]),
            "a\0b",
            Duration::from_secs(30),
        ))
        .await;
    assert_eq!(done.failure().0, FailureCode::InvalidInput);
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_cancelled_program_is_dead_and_what_it_said_is_kept(pool: PgPool) {
    let bench = bench(pool).await;
    let job = job(
        &bench,
        &json!(["bash", "-c", "trap '' TERM; echo so far; sleep 600 & wait"]),
        "x",
        Duration::from_mins(5),
    );
    let begun = Instant::now();
    let done = bench.run_until(&job, Some(("message.delta", Stop::Cancel))).await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_matches!(done.ended.outcome, Outcome::Cancelled);
    let note = Part::Status {
        text: "cancelled".to_owned(),
    };
    assert_eq!(done.ended.messages[0].parts, [Part::text("so far\n"), note]);
    bench.end().await;
}
