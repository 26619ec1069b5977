//! Groups, retries and what an operator does to many jobs: with real processes and the command.

use std::process::{Command, Output};

use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SOON, Setup};

fn bash(code: &str) -> Value {
    json!({"kind": "exec", "input": {"command": ["bash", "-c", code]}})
}

fn group(on_failure: &str, jobs: &[Value]) -> Value {
    json!({"kind": "group", "input": {"on_failure": on_failure, "jobs": jobs}})
}

fn states(result: &Value) -> Vec<&str> {
    let members = result["jobs"].as_array().unwrap().iter();
    members.map(|member| member["state"].as_str().unwrap()).collect()
}

fn outcomes(attempts: &[Value]) -> Vec<&str> {
    attempts.iter().map(|one| one["outcome"].as_str().unwrap()).collect()
}

fn hothouse(cluster: &Cluster, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .args(words)
        .env("HOTHOUSE_SERVER", &cluster.api.address)
        .env("HOTHOUSE_API_KEY", cluster.api.key)
        .output()
        .unwrap()
}

fn said(cluster: &Cluster, words: &[&str]) -> String {
    let output = hothouse(cluster, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_collects_what_its_jobs_became_while_workers_die() {
    let mut cluster = Cluster::start(Setup::default()).await;
    let api = &cluster.api;
    let jobs = [
        bash("echo one"),
        bash("exit 3"),
        json!({"kind": "noop"}),
        bash("sleep 3; echo slow"),
    ];
    let id = api.submit(group("continue", &jobs)).await;
    let waiting = api.job_until(&id, SOON, |job| job["state"] == "waiting").await;
    assert!(
        waiting["waiting_for"].as_str().unwrap().ends_with("of its 4 jobs"),
        "{waiting:#}"
    );
    // A worker that dies while its jobs run loses neither them nor the group.
    let slow = api
        .until(SOON, &format!("/jobs?parent_id={id}&state=running"), |page| {
            page["data"].get(0).cloned()
        })
        .await;
    let index = cluster.worker_of(slow["worker_id"].as_str().unwrap());
    cluster.workers[index].kill();
    let done = cluster.api.succeeded(&id, SOON * 2).await;
    let result = &done["result"];
    assert_eq!(
        states(result),
        ["succeeded", "failed", "succeeded", "succeeded"],
        "{result:#}"
    );
    assert_eq!((&result["succeeded"], &result["failed"]), (&json!(3), &json!(1)));
    assert_eq!(result["jobs"][0]["result"]["stdout"], "one\n");
    assert_eq!(result["jobs"][1]["error"]["code"], "nonzero_exit");
    assert_eq!(result["jobs"][3]["result"]["stdout"], "slow\n");
    assert_eq!(done["failures"], 0);
    let types: Vec<String> = cluster
        .api
        .events(&id)
        .await
        .iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        types.contains(&"waiting".to_owned()) && types.last().unwrap() == "succeeded",
        "{types:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_ends_its_other_jobs_when_it_is_told_to() {
    let cluster = Cluster::start(Setup::default()).await;
    let api = &cluster.api;
    // Because one failed.
    let id = api
        .submit(group("cancel", &[bash("exit 1"), bash("sleep 60"), bash("sleep 60")]))
        .await;
    let failed = api.ended(&id, SOON).await;
    assert_eq!(failed["error"]["code"], "child_failed", "{failed:#}");
    assert_eq!(states(&failed["result"]), ["failed", "cancelled", "cancelled"]);
    // Because its time is over.
    let mut late = group("continue", &[json!({"kind": "noop"}), bash("sleep 60")]);
    late["timeout"] = json!("3s");
    let id = api.submit(late).await;
    let failed = api.ended(&id, SOON).await;
    assert_eq!(failed["error"]["code"], "timeout", "{failed:#}");
    assert_eq!(states(&failed["result"]), ["succeeded", "cancelled"]);
    // Because somebody cancels it.
    let id = api
        .submit(group("continue", &[bash("sleep 60"), bash("sleep 60")]))
        .await;
    let running = format!("/jobs?parent_id={id}&state=running");
    api.until(SOON, &running, |page| page["data"].get(0).map(drop)).await;
    api.call(Method::POST, &format!("/jobs/{id}/cancel"), Some(&json!({})))
        .await
        .unwrap();
    assert_eq!(api.ended(&id, SOON).await["state"], "cancelled");
    api.until(SOON, &format!("/jobs?parent_id={id}&state=cancelled"), |page| {
        (page["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_its_history_and_is_repeated_by_command() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let api = &cluster.api;
    let mut job = bash("echo attempt; exit 7");
    for (name, value) in [
        ("queue", json!("dead")),
        ("retry_on", json!(["nonzero_exit"])),
        ("max_attempts", json!(3)),
        ("backoff", json!({"initial": "50ms", "factor": 2, "max": "1s"})),
    ] {
        job[name] = value;
    }
    let id = api.submit(job).await;
    let dead = api.ended(&id, SOON).await;
    assert_eq!(
        (&dead["state"], &dead["failures"], &dead["attempt"]),
        (&json!("failed"), &json!(3), &json!(3))
    );
    let attempts = api.attempts(&id).await;
    assert_eq!(outcomes(&attempts), ["retrying", "retrying", "failed"]);
    for attempt in &attempts {
        assert_eq!(attempt["error"]["code"], "nonzero_exit");
        assert!(
            attempt["worker_id"].is_string() && attempt["finished_at"].is_string(),
            "{attempt:#}"
        );
    }
    let events = api.events(&id).await;
    for number in 1..=3 {
        let said = |event: &&Value| event["type"] == "stdout" && event["attempt"] == number;
        assert_eq!(events.iter().filter(said).count(), 1, "the log of attempt {number}");
    }
    // What may be tried again and was not asked to be is not: a program's own answer.
    let own = api.submit(bash("exit 7")).await;
    assert_eq!(api.ended(&own, SOON).await["attempt"], 1);

    let filter = ["jobs", "redrive", "--state", "failed", "--queue", "dead"];
    assert_eq!(
        said(&cluster, &[&filter[..], &["--dry-run"]].concat()),
        "1 jobs would match\n"
    );
    assert_eq!(said(&cluster, &filter), "1 jobs\n");
    assert_eq!(said(&cluster, &filter), "0 jobs\n", "it was repeated");
    let again = api.job(&id).await["redriven_as"].as_str().unwrap().to_owned();
    assert_eq!(api.ended(&again, SOON).await["redrive_of"], json!(id));
    assert!(!hothouse(&cluster, &["jobs", "redrive"]).status.success(), "which?");
    assert!(!hothouse(&cluster, &["cancel", "--dry-run"]).status.success(), "which?");

    said(&cluster, &["queues", "pause", "held"]);
    api.submit_all(vec![json!({"kind": "noop", "queue": "held"}); 5]).await;
    assert_eq!(
        said(&cluster, &["cancel", "--queue", "held", "--state", "queued"]),
        "5 jobs\n"
    );
    let worker = &cluster.worker_ids()[0];
    assert!(said(&cluster, &["workers", "list"]).contains(worker.as_str()));
    said(&cluster, &["workers", "drain", worker]);
    let drained = api.until(SOON, "/workers", |page| {
        page["data"][0]["draining_at"].as_str().map(str::to_owned)
    });
    drained.await;
}

/// A drained worker and an interrupted one cost a job nothing; a delay is what the job waits at least.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_worker_costs_a_groups_job_nothing() {
    let mut cluster = Cluster::start(Setup {
        settings: &[("HOTHOUSE_WORKER__DRAIN", "1s")],
        ..Setup::default()
    })
    .await;
    let id = cluster.api.submit(group("cancel", &[bash("sleep 5; echo done")])).await;
    let running = format!("/jobs?parent_id={id}&state=running");
    let child = cluster
        .api
        .until(SOON, &running, |page| page["data"].get(0).cloned())
        .await;
    let index = cluster.worker_of(child["worker_id"].as_str().unwrap());
    cluster.workers[index].terminate(SOON).await;
    let done = cluster.api.succeeded(&id, SOON).await;
    assert_eq!(states(&done["result"]), ["succeeded"]);
    let child = cluster.api.job(child["id"].as_str().unwrap()).await;
    assert_eq!(
        (&child["failures"], &child["losses"], &child["attempt"]),
        (&json!(0), &json!(0), &json!(2)),
        "{child:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sets_limits_by_command() {
    let cluster = Cluster::start(Setup {
        workers: 1,
        ..Setup::default()
    })
    .await;
    let said = |words: &[&str]| -> Value {
        let text = said(&cluster, &[words, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or(Value::Null)
    };
    let limits = ["--weight", "3", "--max-running", "2", "--rate", "10/1m"];
    let queue = said(&[&["queues", "set", "default"][..], &limits].concat());
    let rate = json!({"limit": 10, "window": "1m"});
    assert_eq!(
        (&queue["weight"], &queue["max_running"], &queue["rate"]),
        (&json!(3), &json!(2), &rate)
    );
    let queue = said(&["queues", "set", "default", "--max-running", "none", "--rate", "none"]);
    assert_eq!(
        (&queue["weight"], &queue["max_running"], &queue["rate"]),
        (&json!(3), &Value::Null, &Value::Null)
    );
    assert!(
        !hothouse(&cluster, &["queues", "set", "default"]).status.success(),
        "what?"
    );

    let tenant = said(&["tenants", "list"])["id"].as_str().unwrap().to_owned();
    let set = ["tenants", "set", &tenant, "--run-rate", "10/1m", "--max-running", "7"];
    let shown = said(&set);
    assert_eq!((&shown["run_rate"], &shown["max_running"]), (&rate, &json!(7)));
    assert!(said(&["tenants", "pause", &tenant])["paused_at"].is_string());
    assert_eq!(said(&["tenants", "resume", &tenant])["paused_at"], Value::Null);

    let keyed = [
        "run",
        "-c",
        "print(1)",
        "--detach",
        "--concurrency",
        "a b",
        "--concurrency-limit",
        "2",
    ];
    let job = said(&[&keyed[..], &["--strategy", "reject", "--rate", "a b=5/1s"]].concat());
    let key = json!({"key": "a b", "limit": 2, "strategy": "reject"});
    assert_eq!((&job["concurrency"], &job["rate"]["limit"]), (&key, &json!(5)));
    let paused = said(&["paused-keys", "pause", "a b", "--for", "1h", "--reason", "enough"]);
    assert_eq!(said(&["paused-keys", "list"]), paused);
    said(&["paused-keys", "resume", "a b"]);
    assert_eq!(said(&["paused-keys"]), Value::Null);
}
