//! The worker of turns of `native` is killed at each of their steps, a running tool in a sandbox among them: what the journal
//! has is not done again, every call has one result, and the turns end.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cluster::{Cluster, Held, SOON, Sandboxes, Setup, assert_whole, eventually};
use crate::talking::{Model, Talk, WIRES, event, left_in_redis, runs};

/// A turn that is at a step when its worker is killed.
struct Point {
    /// What the user says; the model's script has rules for it.
    says: &'static str,
    /// An event that shows that the turn is there: its type, and a text in it.
    reached: (&'static str, &'static str),
    /// How often the model is asked at each step, and how often each tool runs, by what it prints.
    asked: &'static [usize],
    ran: &'static [(&'static str, usize)],
    /// What the next attempt says of the calls that it makes again; empty where it has nothing to say.
    resumed: &'static str,
    ends: &'static str,
}

/// In this order the first three take all sandboxes.
const POINTS: [Point; 5] = [
    Point {
        says: "run a tool",
        reached: ("tool.output", "ready"),
        asked: &[1, 1],
        ran: &[("ready", 2)],
        resumed: "after 0 finished steps; 0 model and 1 tool",
        ends: "It ended.",
    },
    Point {
        says: "two tools",
        reached: ("tool.output", "the second"),
        asked: &[1, 1, 1],
        ran: &[("the first", 1), ("the second", 2)],
        resumed: "after 1 finished steps; 0 model and 1 tool",
        ends: "Both ended.",
    },
    Point {
        says: "after its result",
        reached: ("message.delta", "Well"),
        asked: &[1, 2],
        ran: &[("result", 1)],
        resumed: "after 1 finished steps; 1 model and 0 tool",
        ends: "Well, done.",
    },
    Point {
        says: "stream",
        reached: ("message.delta", "Part"),
        asked: &[2],
        ran: &[],
        resumed: "after 0 finished steps; 1 model and 0 tool",
        ends: "Part one. Part two.",
    },
    // Its answer is in the journal, and its tool waits for a sandbox.
    Point {
        says: "no sandbox yet",
        reached: ("status", "waiting_for_sandbox"),
        asked: &[1, 1],
        ran: &[("at last", 1)],
        resumed: "after 0 finished steps; 0 model and 1 tool",
        ends: "It ran.",
    },
];

/// One that cannot read its conversation yet, and one whose answer is on its way into the journal. Each needs a table that
/// the test keeps.
const BEFORE_THE_FIRST_CALL: Point = Point {
    says: "not asked yet",
    reached: ("started", ""),
    asked: &[1],
    ran: &[],
    resumed: "",
    ends: "Now it is.",
};
const WHILE_THE_ANSWER_IS_WRITTEN: Point = Point {
    says: "not written yet",
    // Postgres may write what it was told, although nobody is there to hear that it has: see `assert_written_or_repeated`.
    asked: &[],
    resumed: " finished steps; ",
    ends: "It is written.",
    ..BEFORE_THE_FIRST_CALL
};

fn bash(command: &str) -> Value {
    json!({"tool_call": {"name": "bash", "input": {"command": command}}})
}

/// The model and the tools take long enough to be met by a death, and short enough to end after it.
fn script() -> Value {
    let step =
        |says: &str, step: usize, reply: Value| json!({"when": {"user_contains": says, "step": step}, "reply": reply});
    json!({"rules": [
        step("and now?", 0, json!([bash("echo still here")])),
        step("and now?", 1, json!([{"text": "It says {{output}}"}])),
        step("stream", 0, json!([{"text": "Part one."}, {"wait": "10s"}, {"text": " Part two."}])),
        step("run a tool", 0, json!([bash("echo ready; sleep 12.25; echo over")])),
        step("run a tool", 1, json!([{"text": "It ended."}])),
        step("two tools", 0, json!([bash("echo the first $RANDOM$RANDOM")])),
        step("two tools", 1, json!([bash("echo the second; sleep 12.5; echo over")])),
        step("two tools", 2, json!([{"text": "Both ended."}])),
        step("after its result", 0, json!([bash("echo result $RANDOM$RANDOM")])),
        step("after its result", 1, json!([{"text": "Well"}, {"wait": "10s"}, {"text": ", done."}])),
        step("no sandbox yet", 0, json!([bash("echo at last")])),
        step("no sandbox yet", 1, json!([{"text": "It ran."}])),
        step("not asked yet", 0, json!([{"text": "Now it is."}])),
        step("not written yet", 0, json!([{"text": "It is written."}])),
    ]})
}

/// How often the model was asked, by what the user had said and by the step.
fn asked(model: &Model) -> BTreeMap<(String, usize), usize> {
    let mut counts = BTreeMap::new();
    for request in model.asked() {
        let messages = request["messages"].as_array().unwrap();
        let said = |message: &Value| match &message["content"] {
            Value::String(text) => Some(text.clone()),
            content => content.as_array()?.iter().find_map(|block| {
                let is_text = block["type"] == "text";
                is_text.then(|| block["text"].as_str().map(str::to_owned))?
            }),
        };
        let of_user = |message: &&Value| message["role"] == "user" && said(message).is_some();
        let at = messages.iter().rposition(|message| of_user(&message)).unwrap();
        let step = messages[at..].iter().filter(|one| one["role"] == "assistant").count();
        *counts.entry((said(&messages[at]).unwrap(), step)).or_default() += 1;
    }
    counts
}

fn agent(wire: &str) -> Value {
    json!({"harness": "native", "models": [format!("{wire}/m")], "tools": ["bash"]})
}

/// The outputs of finished tools, in order, of one attempt.
fn finished(events: &[Value], attempt: u64) -> Vec<&str> {
    let of_attempt = events
        .iter()
        .filter(|event| event["type"] == "tool.finished" && event["attempt"] == attempt);
    of_attempt.map(|event| event["output"].as_str().unwrap()).collect()
}

impl Point {
    async fn check(&self, cluster: &Cluster, model: &Model, job: &str) {
        let job = cluster.api.succeeded(job, 3 * SOON).await;
        let told = format!("{}: {job:#}", self.says);
        assert_eq!(
            (
                &job["attempt"],
                &job["losses"],
                &job["failures"],
                &job["result"]["text"]
            ),
            (&json!(2), &json!(1), &json!(0), &json!(self.ends)),
            "{told}"
        );
        let events = cluster.api.events(job["id"].as_str().unwrap()).await;
        assert_whole(&job, &events);
        let counts = asked(model);
        for (step, expected) in self.asked.iter().enumerate() {
            let count = counts.get(&(self.says.to_owned(), step)).copied().unwrap_or(0);
            assert_eq!(count, *expected, "step {step} of {told}\n{events:#?}");
        }
        for (printed, expected) in self.ran {
            let is_it =
                |event: &&Value| event["type"] == "tool.output" && event["text"].as_str().unwrap().contains(printed);
            assert_eq!(events.iter().filter(is_it).count(), *expected, "{printed} of {told}");
        }
        // What the attempt before had brought to its end is what the next one builds on, to the letter.
        let (before, after) = (finished(&events, 1), finished(&events, 2));
        assert_eq!(before[..], after[..before.len()], "{told}");
        let resumed = events.iter().find(|event| event["phase"] == "resumed");
        let resumed = resumed.map_or("", |event| event["detail"].as_str().unwrap());
        assert!(resumed.contains(self.resumed), "{resumed:?} of {told}");
        assert_eq!(resumed.is_empty(), self.resumed.is_empty(), "{resumed:?} of {told}");
    }
}

/// An answer that was on its way into the journal is in it and was not asked for again, or it is not, and the repetition is
/// counted.
async fn assert_written_or_repeated(cluster: &Cluster, model: &Model, job: &str) {
    let written = format!("select 1 from journal where job_id = '{job}' and place = -1 and attempt = 1");
    let (times, said) = if cluster.sql(&written).is_empty() {
        (2, "after 0 finished steps; 1 model")
    } else {
        (1, "after 1 finished steps; 0 model")
    };
    let key = (WHILE_THE_ANSWER_IS_WRITTEN.says.to_owned(), 0);
    assert_eq!(asked(model)[&key], times);
    let events = json!(cluster.api.events(job).await).to_string();
    assert!(events.contains(said), "{said}: {events}");
}

/// Each call has one result, in the message behind it.
fn assert_answered(messages: &[Value]) {
    let ids = |message: &Value, kind: &str, field: &str| -> Vec<String> {
        let parts = message["parts"].as_array().unwrap().iter();
        let of_kind = parts.filter(|part| part["type"] == kind);
        of_kind.map(|part| part[field].as_str().unwrap().to_owned()).collect()
    };
    let calls = messages.iter().flat_map(|message| ids(message, "tool_call", "id"));
    let results = messages
        .iter()
        .flat_map(|message| ids(message, "tool_result", "tool_call_id"));
    assert_eq!(calls.collect::<Vec<_>>(), results.collect::<Vec<_>>(), "{messages:#?}");
}

/// A turn that stands still at a statement, because it needs a table that is somebody's.
async fn stopped_at(cluster: &Cluster, point: &Point, (table, statement): (&str, &str)) -> (Talk, String, Held) {
    let talk = Talk::begin(&cluster.api, agent(WIRES[0])).await;
    // Its own message is written before the table is taken.
    let job = talk.turn(point.says, &json!({"delay": "1s"})).await;
    let held = cluster
        .hold(&format!("lock table {table} in access exclusive mode"))
        .await;
    cluster.waits(statement).await;
    (talk, job, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_whose_worker_is_killed_at_any_step_end_and_do_nothing_twice_that_was_written_down() {
    let model = Model::start(&[("m", script())]).await;
    let mut cluster = Cluster::start(Setup {
        workers: 1,
        sandboxes: Sandboxes::Bubblewrap,
        warm: 1,
        sandboxes_max: 3,
        settings: model.settings(&[]),
        ..Setup::default()
    })
    .await;
    let mut turns = Vec::new();
    for (point, wire) in POINTS.iter().zip(WIRES.into_iter().cycle()) {
        let talk = Talk::begin(&cluster.api, agent(wire)).await;
        let job = talk.turn(point.says, &json!({})).await;
        let (kind, text) = point.reached;
        let is_there = |event: &Value| event["type"] == kind && event.to_string().contains(text);
        event(&cluster.api, &job, is_there).await;
        turns.push((point, talk, job));
    }
    let mut held = Vec::new();
    for (point, table, statement) in [
        (&WHILE_THE_ANSWER_IS_WRITTEN, "journal", "insert into journal "),
        (&BEFORE_THE_FIRST_CALL, "messages", "select turn from messages"),
    ] {
        let (talk, job, lock) = stopped_at(&cluster, point, (table, statement)).await;
        turns.push((point, talk, job));
        held.push(lock);
    }
    for (point, _, job) in &turns {
        let job = cluster.api.job(job).await;
        assert_eq!(
            (&job["state"], &job["attempt"]),
            (&json!("running"), &json!(1)),
            "{}: {job:#}",
            point.says
        );
    }

    cluster.workers[0].kill();
    drop(held);
    for program in ["sleep 12.25", "sleep 12.5"] {
        eventually(SOON, "its programs are dead", || (!runs(program)).then_some(())).await;
    }
    cluster.workers[0].start();
    for (point, talk, job) in &turns {
        point.check(&cluster, &model, job).await;
        assert_answered(&talk.messages().await);
        if point.says == WHILE_THE_ANSWER_IS_WRITTEN.says {
            assert_written_or_repeated(&cluster, &model, job).await;
        }
    }
    // Each conversation goes on, over the other wire.
    for ((_, talk, _), wire) in turns.iter().zip(WIRES.into_iter().cycle().skip(1)) {
        talk.change(&json!({"models": [format!("{wire}/m")]})).await;
        let next = cluster
            .api
            .succeeded(&talk.turn("and now?", &json!({})).await, SOON)
            .await;
        assert_eq!(next["result"]["text"], "It says still here\n", "{next:#}");
        talk.assert_idle().await;
    }
    model.assert_valid();
    eventually(SOON, "no place and no lease is left", || {
        left_in_redis(&cluster).is_empty().then_some(())
    })
    .await;
}
