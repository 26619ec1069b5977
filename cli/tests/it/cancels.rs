//! A turn is cancelled in every state that it can be in, over real processes: it ends at once, its conversation is valid for
//! the next call on both wires, the next turn runs, and nothing is left of it.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Held, SOON, Sandboxes, Setup, eventually};
use crate::talking::{Model, STOPPED, Talk, WIRES, event, left_in_redis, post, runs};

/// What stands in a turn's way from before it is submitted.
enum Before {
    Nothing,
    /// Another turn of the conversation that does not end.
    Turn,
    /// A turn elsewhere that has the only place of the concurrency key `narrow`.
    Place,
    /// A job in the only sandbox.
    Sandbox,
    /// Somebody who keeps this table from being written.
    Table(&'static str),
}

/// How one sees that a turn has come to the state.
enum Reached {
    State(&'static str),
    /// An event of this type with this in it.
    Event(&'static str, &'static str),
    /// A tool runs in a sandbox.
    Tool,
    /// A sandbox is in use, and no tool has begun.
    Sandbox,
    /// Somebody waits for the table.
    Table(&'static str),
}

struct Case {
    state: &'static str,
    /// What the user says; the model's script has a rule for it.
    says: &'static str,
    /// Fields of its job.
    fields: Value,
    before: Before,
    reached: Reached,
    /// What its conversation keeps of the answer.
    keeps: &'static [&'static str],
    ends: &'static str,
}

impl Case {
    fn new(state: &'static str, says: &'static str, reached: Reached, keeps: &'static [&'static str]) -> Self {
        Self {
            state,
            says,
            fields: json!({}),
            before: Before::Nothing,
            reached,
            keeps,
            ends: "cancelled",
        }
    }
}

/// The states in which no worker holds the turn.
fn asleep() -> Vec<Case> {
    let case = |state, says, reached, keeps| Case::new(state, says, Reached::State(reached), keeps);
    vec![
        Case {
            fields: json!({"delay": "1h"}),
            ..case("not yet due", "stall", "scheduled", &[])
        },
        Case {
            before: Before::Turn,
            ..case("queued behind another turn", "wait here", "queued", &[])
        },
        Case {
            before: Before::Place,
            fields: json!({"concurrency": {"key": "narrow", "limit": 1}}),
            ..case("queued for a place", "wait here", "queued", &[])
        },
        case("waiting for a person", "ask me", "waiting", &["May I?"]),
        case("waiting for its provider", "be busy", "waiting", &["Before.", "first"]),
        Case {
            fields: json!({"max_attempts": 3, "backoff": {"initial": "24h", "factor": 1, "max": "24h"}}),
            ..case("waiting to be tried again", "break off", "retrying", &[])
        },
    ]
}

/// The states in which a worker holds it.
fn held() -> Vec<Case> {
    let case = Case::new;
    let event = Reached::Event;
    let saving = |state, table| Case {
        before: Before::Table(table),
        ..case(state, "write a file", Reached::Table(table), &["Writing.", "All done."])
    };
    let no_sandbox = event("status", "waiting_for_sandbox");
    vec![
        Case {
            before: Before::Sandbox,
            ..case("waiting for its sandbox", "run a tool", no_sandbox, &["Running."])
        },
        case(
            "the model has said nothing yet",
            "say nothing",
            event("started", ""),
            &[],
        ),
        case(
            "the model streams text",
            "stall",
            event("message.delta", "Some"),
            &["Some words."],
        ),
        case(
            "the model streams a tool call",
            "write a call",
            Reached::Sandbox,
            &["Calling now."],
        ),
        case("a tool runs", "run a tool", Reached::Tool, &["Running.", "cancelled"]),
        case(
            "between two steps",
            "two steps",
            event("tool.finished", "first"),
            &["Stepping.", "first"],
        ),
        saving("its files are being saved", "workspace_archives"),
        Case {
            // Its end was written first, and the first end counts.
            ends: "succeeded",
            ..saving("its end is being committed", "job_events")
        },
    ]
}

fn bash(command: &str) -> Value {
    json!({"tool_call": {"name": "bash", "input": {"command": command}}})
}

/// The user's words of a cancelled turn that said nothing stand beside those of the next, so the next one's come first.
fn script() -> Value {
    let rule = |says: &str, reply: Value| json!({"when": {"user_contains": says}, "reply": reply});
    let step =
        |says: &str, step: usize, reply: Value| json!({"when": {"user_contains": says, "step": step}, "reply": reply});
    json!({"rules": [
        step("and now?", 0, json!([{"text": "Looking."}, bash("echo fine; cat kept 2>/dev/null")])),
        rule("and now?", json!([{"text": "It says {{output}}"}])),
        rule("in other words?", json!([{"text": "The same."}])),
        rule("stall", json!([{"text": "Some words."}, "stall"])),
        rule("say nothing", json!(["stall"])),
        rule("wait here", json!([{"text": "It ran."}])),
        rule("run a tool", json!([{"text": "Running."}, bash("echo ready; sleep 61.25")])),
        step("two steps", 0, json!([{"text": "Stepping."}, bash("echo first")])),
        rule("two steps", json!(["stall"])),
        rule("ask me", json!([{"text": "May I?"},
            {"tool_call": {"name": "python", "input": {"code": "print('ran')"}}}])),
        step("be busy", 0, json!([{"text": "Before."}, bash("echo first")])),
        rule("be busy", json!([{"error": {"status": 429, "kind": "rate_limit_error", "retry_after": "10m"}}])),
        rule("break off", json!([{"text": "Half a"}, "cut"])),
        step("write a file", 0, json!([{"text": "Writing."}, bash("echo kept > kept")])),
        rule("write a file", json!([{"text": "All done."}])),
    ]})
}

/// Writes its call for half a minute.
fn slow() -> Value {
    let command = format!("echo {}", "x".repeat(12_000));
    json!({"pause": "20ms", "rules": [{"reply": [{"text": "Calling now."}, bash(&command)]}]})
}

/// Sandboxes in use, as workers have said since then; they do every few seconds.
fn leased(list: &Value, since: DateTime<Utc>) -> u64 {
    let of_environments = list["data"].as_array().unwrap().iter();
    let fresh = of_environments.filter(|one| time(&one["seen_at"]) > since);
    fresh.filter_map(|one| one["leased"].as_u64()).sum()
}

fn time(text: &Value) -> DateTime<Utc> {
    text.as_str().unwrap().parse().unwrap()
}

/// A world with one sandbox, in which a turn comes to a state and is cancelled.
struct World {
    cluster: Cluster,
    model: Model,
}

impl World {
    async fn start() -> Self {
        let model = Model::start(&[("m", script()), ("slow", slow())]).await;
        let settings = model.settings(&[("HOTHOUSE_MODEL__RETRY__RETRY_AFTER_MAX", "1s")]);
        let cluster = Cluster::start(Setup {
            workers: 1,
            sandboxes: Sandboxes::Bubblewrap,
            warm: 1,
            sandboxes_max: 1,
            settings,
            ..Setup::default()
        })
        .await;
        Self { cluster, model }
    }

    fn models(case: &Case, wire: &str) -> Value {
        match case.says {
            "write a call" => json!([format!("{wire}/slow")]),
            "be busy" => json!([format!("busy{wire}/m")]),
            _ => json!([format!("{wire}/m")]),
        }
    }

    async fn talk(&self, models: Value) -> Talk {
        let ask = json!({"name": "python", "policy": "ask", "deadline": "1h"});
        let agent = json!({"harness": "native", "models": models, "tools": ["bash", ask]});
        Talk::begin(&self.cluster.api, agent).await
    }

    async fn cancel(&self, job: &str) {
        let path = format!("/jobs/{job}/cancel");
        post(&self.cluster.api, &path, &json!({})).await;
    }

    /// Brings a turn to the state; answers it, what stood in its way, and who keeps a table.
    async fn come_to(&self, case: &Case, talk: &Talk, wire: &str) -> (String, Option<String>, Option<Held>) {
        let (mut other, mut held) = (None, None);
        match case.before {
            Before::Nothing => {}
            Before::Turn => other = Some(talk.turn("stall", &json!({})).await),
            Before::Place => {
                let elsewhere = self.talk(json!([format!("{wire}/m")])).await;
                other = Some(elsewhere.turn("stall", &case.fields).await);
            }
            Before::Sandbox => {
                let job = json!({"kind": "exec", "input": {"command": ["sleep", "61.5"]}});
                other = Some(self.cluster.api.submit(job).await);
            }
            Before::Table(table) => held = Some(self.cluster.hold(&format!("lock table {table} in share mode")).await),
        }
        if let Some(other) = &other {
            let runs = |job: &Value| job["state"] == "running";
            self.cluster.api.job_until(other, SOON, runs).await;
        }
        if let Before::Sandbox = case.before {
            eventually(SOON, "the sandbox is in use", || runs("sleep 61.5").then_some(())).await;
        }
        let job = talk.turn(case.says, &case.fields).await;
        let api = &self.cluster.api;
        match case.reached {
            Reached::State(state) => drop(api.job_until(&job, SOON, |job| job["state"] == state).await),
            Reached::Event(kind, text) => {
                let is_it = |event: &Value| event["type"] == kind && event.to_string().contains(text);
                event(&self.cluster.api, &job, is_it).await;
            }
            Reached::Tool => {
                event(&self.cluster.api, &job, |event| event["type"] == "tool.output").await;
                assert!(runs("sleep 61.25"));
            }
            Reached::Sandbox => {
                let is_it = |event: &Value| event["type"] == "message.delta" && event.to_string().contains("now");
                let since = time(&event(&self.cluster.api, &job, is_it).await["at"]);
                let now_leased = |list: &Value| (leased(list, since) == 1).then_some(());
                api.until(SOON, "/sandboxes", now_leased).await;
                let begun = |event: &Value| event["type"] == "tool.started";
                assert!(!api.events(&job).await.iter().any(begun), "it still writes the call");
            }
            Reached::Table(table) => self.cluster.waits(&format!("insert into {table} ")).await,
        }
        (job, other, held)
    }

    /// One row of the table. With a `word`, something is said to the turn just before it is cancelled.
    async fn check(&self, case: &Case, wire: &str, word: Option<&str>) -> Duration {
        let talk = self.talk(Self::models(case, wire)).await;
        let (job, other, held) = Box::pin(self.come_to(case, &talk, wire)).await;
        if let Some(word) = word {
            post(
                &self.cluster.api,
                &format!("/jobs/{job}/messages"),
                &json!({"text": word}),
            )
            .await;
        }
        let mut begun = Instant::now();
        match held {
            None => self.cancel(&job).await,
            // What is being saved is saved: files are not left behind half.
            Some(held) => {
                let cancelled = async {
                    self.cancel(&job).await;
                };
                let released = async {
                    if case.ends == "cancelled" {
                        let told = format!("an attempt is told to stop job_id={job}");
                        let is_told = || self.cluster.workers[0].said().contains(&told).then_some(());
                        eventually(SOON, "the worker hears it", is_told).await;
                    } else {
                        // The request waits for the row that the worker has written.
                        let waits =
                            "select 1 from pg_locks where not granted and locktype in ('transactionid', 'tuple')";
                        let is_waiting = || (!self.cluster.sql(waits).is_empty()).then_some(());
                        eventually(SOON, "the request waits", is_waiting).await;
                    }
                    drop(held);
                    begun = Instant::now();
                };
                tokio::join!(cancelled, released);
            }
        }
        let ended = self.cluster.api.ended(&job, STOPPED).await;
        let took = begun.elapsed();
        assert_eq!(ended["state"], case.ends, "{ended:#}");
        assert_eq!(ended["failures"], u64::from(case.says == "break off"), "{ended:#}");
        eventually(STOPPED, "its processes are dead", || {
            (!runs("sleep 61.25")).then_some(())
        })
        .await;
        if let Some(other) = other {
            let other = self.cluster.api.job(&other).await;
            assert_eq!(other["state"], "running", "what stood in its way goes on: {other:#}");
            self.cancel(other["id"].as_str().unwrap()).await;
            self.cluster.api.ended(other["id"].as_str().unwrap(), STOPPED).await;
        }
        talk.assert_idle().await;
        self.go_on(case, &talk, wire, word).await;
        took
    }

    /// The next turn works in the sandbox, the one after it goes over the other wire, and both know what was said.
    async fn go_on(&self, case: &Case, talk: &Talk, wire: &str, word: Option<&str>) {
        let api = &self.cluster.api;
        let said = json!(talk.messages().await).to_string();
        for kept in case.keeps.iter().copied().chain([case.says]).chain(word) {
            assert_eq!(said.matches(kept).count().min(1), 1, "{kept:?} is kept once: {said}");
        }
        assert!(!said.contains("It ran."), "{said}");
        talk.change(&json!({"models": [format!("{wire}/m")]})).await;
        let next = talk.turn("and now?", &json!({})).await;
        let next = api.succeeded(&next, SOON).await;
        assert!(next["result"]["text"].as_str().unwrap().contains("fine"), "{next:#}");
        assert_eq!(
            (&next["attempt"], &next["failures"]),
            (&json!(1), &json!(0)),
            "{next:#}"
        );
        let wire = WIRES.into_iter().find(|one| *one != wire).unwrap();
        talk.change(&json!({"models": [format!("{wire}/m")]})).await;
        let last = api
            .succeeded(&talk.turn("in other words?", &json!({})).await, SOON)
            .await;
        assert_eq!(last["result"]["text"], "The same.", "{last:#}");
        let asked = self.model.asked().pop().unwrap();
        for kept in case.keeps.iter().copied().chain([case.says]).chain(word) {
            assert!(
                asked.to_string().contains(kept),
                "{kept:?} is in the next call: {asked:#}"
            );
        }
        talk.assert_idle().await;
        eventually(STOPPED, "no place and no lease is left", || {
            left_in_redis(&self.cluster).is_empty().then_some(())
        })
        .await;
        let path = format!("/conversations/{}", talk.id);
        let deleted = api.call(Method::DELETE, &path, None).await.unwrap();
        assert_eq!(deleted.status(), 204);
    }
}

#[expect(clippy::print_stderr, reason = "how long each took belongs to the test's output")]
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_cancelled_in_every_state_and_its_conversation_goes_on() {
    let world = World::start().await;
    for (n, case) in asleep().iter().chain(&held()).enumerate() {
        // Each state on both wires, once in silence and once with a word that nobody has heard yet.
        for (wire, is_spoken_to) in WIRES.into_iter().zip([n % 2 == 0, n % 2 == 1]) {
            let word = (is_spoken_to && case.ends == "cancelled").then_some("By the way.");
            let took = Box::pin(world.check(case, wire, word)).await;
            eprintln!("{} ({wire}, {word:?}): over after {took:?}", case.state);
        }
    }
    world.model.assert_valid();
    let nobody = |list: &Value| (leased(list, DateTime::UNIX_EPOCH) == 0).then_some(());
    world.cluster.api.until(SOON, "/sandboxes", nobody).await;
    let open = "select count(*) from jobs where finished_at is null";
    assert_eq!(world.cluster.sql(open), ["0"]);
}
