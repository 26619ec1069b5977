//! A worker that stands still and comes back: what it ran was dead before its successors began, it changes nothing any
//! more, and what its calls of models used is written down all the same.

use std::fs;
use std::time::Duration;

use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::history::Sighting;
use super::plan::{APIS, WORKERS, name_of};
use super::rig::Rig;
use super::witness::Witness;
use super::{now, number, say};
use crate::cluster::{SOON, assert_whole, eventually};

/// How long it stands still in every run of the tests, with short leases; `make torture FAULTS=freeze` does it for a minute
/// with those that are the default.
const STILL: Duration = Duration::from_secs(10);

/// Leases of every run of the tests: total, between two heartbeats, and what a sandbox may run on.
const LEASES: [(&str, &str); 3] = [
    ("HOTHOUSE_LEASES__TTL", "2s"),
    ("HOTHOUSE_LEASES__HEARTBEAT", "500ms"),
    ("HOTHOUSE_LEASES__RUN_ON", "1600ms"),
];

/// Runs of an agent, so many that each worker has one.
const RUNS: usize = 24;

/// An answer that takes long enough to be in the middle of it.
const SLOW: &str = r#"{"rules": [{"reply": [{"text": "begin "}, {"wait": "8s"}, {"text": "end"}]}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stood_still_changes_nothing_any_more() {
    let long = number("HOTHOUSE_TORTURE_FREEZE_SECONDS").map(Duration::from_secs);
    let still = long.unwrap_or(STILL);
    let rig = Rig::start_with(|folder| {
        let scripts = folder.join("scripts");
        fs::create_dir_all(&scripts).unwrap();
        fs::write(scripts.join("slow.json"), SLOW).unwrap();
        let mut settings = vec![("HOTHOUSE_MODEL__SCRIPTS", scripts.to_str().unwrap().to_owned())];
        if long.is_none() {
            settings.extend(LEASES.map(|(name, value)| (name, value.to_owned())));
        }
        settings
    })
    .await;
    let api = &rig.apis[0];
    let prefix = format!("frozen-{}-", std::process::id());
    let witness = Witness::start(prefix.clone());
    let program = api.submit(counting(&format!("{prefix}job"))).await;
    let runs = run_agent(&rig).await;
    api.printed(&program, 1, "2").await;
    let first = holder(&rig, &program);
    let run = eventually(SOON, "it calls a model too", || {
        runs.iter().find(|run| holder(&rig, run) == first)
    })
    .await;

    let process = (APIS..APIS + WORKERS).find(|number| name_of(*number) == first).unwrap();
    rig.processes[process].lock().await.signal(Signal::SIGSTOP);
    let (stopped, uptime) = (now(), super::witness::uptime());
    sleep(still).await;
    let meanwhile = api.job(&program).await;
    let thawed = now();
    rig.processes[process].lock().await.signal(Signal::SIGCONT);
    assert!(
        meanwhile["attempt"].as_u64() > Some(1),
        "its lease passed: {meanwhile:#}"
    );

    for id in [&program, run] {
        let job = api.succeeded(id, 2 * SOON).await;
        assert_eq!(
            (&job["attempt"], &job["losses"], &job["failures"]),
            (&json!(2), &json!(1), &json!(0)),
            "{job:#}"
        );
        assert_whole(&job, &api.events(id).await);
        let outcomes = rig.sql(&format!(
            "select attempt, outcome from attempts where job_id = '{id}' order by attempt"
        ));
        assert_eq!(outcomes, ["1|lost", "2|succeeded"]);
    }
    one_after_the_other(&witness.sightings(), uptime, still);
    refused(&rig, &first).await;
    used_by_both(&rig, run, thawed).await;
    let began: DateTime<Utc> =
        serde_json::from_str(&rig.sql(&format!("select to_json(started_at) from jobs where id = '{program}'"))[0])
            .unwrap();
    say(&format!(
        "frozen: a worker stood still for {} s; its job ran elsewhere after {:.1} s",
        still.as_secs(),
        (began - stopped).as_seconds_f64()
    ));
    assert_eq!(rig.stop().await, Vec::<String>::new());
    drop(fs::remove_dir_all(&rig.folder));
}

/// Counts fifths of a second for eight of them.
fn counting(token: &str) -> Value {
    let code = "for i in $(seq 40); do echo $i; sleep 0.2; done";
    json!({"kind": "exec", "timeout": "60s", "input": {"command": ["bash", "-c", code, token]}})
}

async fn run_agent(rig: &Rig) -> Vec<String> {
    let agent = json!({"name": "slow", "models": ["scripted/slow"], "harness": "chat"});
    let agent = post(rig, "/agents", &agent).await;
    let path = format!("/agents/{}/runs", agent["id"].as_str().unwrap());
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let job = post(rig, &path, &json!({"input": "go"})).await;
        runs.push(job["id"].as_str().unwrap().to_owned());
    }
    runs
}

async fn post(rig: &Rig, path: &str, body: &Value) -> Value {
    let answer = rig.apis[0].call(Method::POST, path, Some(body)).await.unwrap();
    let (status, body): (_, Value) = (answer.status(), answer.json().await.unwrap());
    assert!(status.is_success(), "{path}: {body:#}");
    body
}

/// The name of the worker that runs a job.
fn holder(rig: &Rig, id: &str) -> String {
    let sql = format!(
        "select w.name from jobs j join workers w on w.id = j.worker_id where j.id = '{id}' and j.state = 'running'"
    );
    rig.sql(&sql).pop().unwrap_or_default()
}

/// The kernel saw two sandboxes: the first ended by itself while its worker stood still, and before the second began.
fn one_after_the_other(sightings: &[Sighting], stopped: f64, still: Duration) {
    let mut sandboxes: Vec<(u64, f64, f64)> = Vec::new();
    for one in sightings {
        match sandboxes.iter_mut().find(|(sandbox, ..)| *sandbox == one.sandbox) {
            Some((_, began, seen)) => (*began, *seen) = (began.min(one.began), seen.max(one.seen)),
            None => sandboxes.push((one.sandbox, one.began, one.seen)),
        }
    }
    sandboxes.sort_by(|a, b| a.1.total_cmp(&b.1));
    let [first, second] = sandboxes[..] else {
        panic!("two sandboxes ran it, one after the other: {sightings:#?}");
    };
    say(&format!(
        "frozen: the sandbox was dead after {:.1} s, the next began after {:.1} s",
        first.2 - stopped,
        second.1 - stopped
    ));
    assert!(first.2 < second.1, "{sandboxes:?}");
    assert!(
        second.1 < stopped + still.as_secs_f64(),
        "the other still stood: {sandboxes:?}"
    );
}

/// It hears that it has lost what it held, and what it would have written is refused.
async fn refused(rig: &Rig, worker: &str) {
    let log = rig.folder.join(format!("{worker}.log"));
    let words = ["lease lost", "not confirmed by Postgres", "ended after its lease"];
    eventually(SOON, "the thawed worker hears that it has lost", || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        words.iter().any(|one| said.contains(one)).then_some(())
    })
    .await;
}

/// What a model was asked by an attempt that is over was used all the same.
async fn used_by_both(rig: &Rig, run: &str, thawed: DateTime<Utc>) {
    let sql = format!(
        "select attempt, call, at > '{}' from usage where job_id = '{run}' order by attempt",
        thawed.to_rfc3339()
    );
    eventually(SOON, "both attempts' calls are written down", || {
        (rig.sql(&sql).len() == 2).then_some(())
    })
    .await;
    let rows = rig.sql(&sql);
    assert!(rows[0] == "1|0|t" && rows[1].starts_with("2|0|"), "{rows:?}");
}
