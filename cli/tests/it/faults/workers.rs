//! Workers that die or stand still with sandboxes in their hands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::{is_full, one_worker, report, within};
use crate::cluster::{Cluster, Engine, SOON, Setup, assert_whole, eventually, processes_of, until_dead};

const SANDBOXES: usize = 40;

/// A tree of processes, one of which has left its session.
fn tree() -> Value {
    let code = "sleep 300 & (sleep 300 & sleep 300) & echo begin; wait";
    json!({"kind": "exec", "timeout": "300s", "input": {"command": ["sh", "-c", code]}})
}

async fn running(cluster: &Cluster, engine: &Engine, sandboxes: usize) -> (Vec<String>, BTreeSet<i32>) {
    let jobs = cluster.api.submit_all(vec![tree(); sandboxes]).await;
    for id in &jobs {
        cluster.api.printed(id, 1, "begin").await;
    }
    let processes = processes_of(&engine.inits());
    // An init, its supervisor, the shell and three others.
    assert!(processes.len() >= 6 * sandboxes, "{} processes", processes.len());
    (jobs, processes)
}

async fn cancel_all(cluster: &Cluster, jobs: &[String]) {
    for id in jobs {
        let path = format!("/jobs/{id}/cancel");
        let answer = cluster.api.call(Method::POST, &path, None).await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }
    for id in jobs {
        let job = cluster.api.ended(id, 2 * SOON).await;
        assert_eq!(job["state"], "cancelled", "{job:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_forty_sandboxes_with_it() {
    let engine = Engine::start();
    let before = engine.remains();
    let settings = &[("HOTHOUSE_WORKER__SANDBOX_SLOTS", "40")];
    let mut cluster = Cluster::start_on(one_worker(SANDBOXES, 0, settings), Some(&engine)).await;
    let (jobs, processes) = running(&cluster, &engine, SANDBOXES).await;

    let killed = Instant::now();
    cluster.workers[0].signal(nix::sys::signal::Signal::SIGKILL);
    let dead = until_dead(&processes, SOON);
    within(
        &format!("killed worker: {} processes dead", processes.len()),
        dead,
        Duration::from_millis(250),
    );
    eventually(SOON, "no container is left", || {
        engine.containers().is_empty().then_some(())
    })
    .await;
    within(
        "killed worker: 40 containers removed",
        killed.elapsed(),
        Duration::from_secs(5),
    );

    cluster.workers[0].kill();
    cluster.workers[0].start();
    for id in &jobs {
        let job = cluster.api.job_until(id, 2 * SOON, |job| job["attempt"] == 2).await;
        assert_eq!((&job["losses"], &job["failures"]), (&json!(1), &json!(0)), "{job:#}");
    }
    cancel_all(&cluster, &jobs).await;
    assert!(cluster.workers[0].terminate(SOON).await.success());
    engine.until_clean(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_workers_sandboxes_are_dead_within_six_seconds() {
    let engine = Engine::start();
    let mut cluster = Cluster::start_on(one_worker(4, 0, &[]), Some(&engine)).await;
    let (jobs, processes) = running(&cluster, &engine, 4).await;

    cluster.workers[0].freeze();
    let dead = until_dead(&processes, SOON);
    within("frozen worker: its jobs are dead", dead, Duration::from_secs(6));
    eventually(SOON, "its jobs are taken from it", || {
        (cluster.sql("select count(*) from jobs where losses = 1") == ["4"]).then_some(())
    })
    .await;
    cluster.workers[0].thaw();
    for id in &jobs {
        let job = cluster.api.job_until(id, 2 * SOON, |job| job["attempt"] == 2).await;
        assert_eq!((&job["losses"], &job["failures"]), (&json!(1), &json!(0)), "{job:#}");
    }
    cancel_all(&cluster, &jobs).await;
    assert!(cluster.workers[0].terminate(SOON).await.success());
}

/// Sends a conversation's message; answers its turn.
async fn say(cluster: &Cluster, conversation: &str, script: &str) -> String {
    let path = format!("/conversations/{conversation}/turns");
    let message = json!({"text": format!("```bash\n{script}\n```"), "timeout": "120s"});
    post(cluster, &path, &message).await["job"]["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn post(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let answer = cluster.api.call(Method::POST, path, Some(body)).await.unwrap();
    let (status, body): (_, Value) = (answer.status(), answer.json().await.unwrap());
    assert!(status.is_success(), "{path}: {status} {body:#}");
    body
}

/// The archives that are there, whole or not, with their sizes.
fn archives(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let tenants = fs::read_dir(folder.join("objects/workspaces"))
        .into_iter()
        .flatten()
        .flatten();
    for entry in tenants {
        found.push((entry.path(), entry.metadata().map_or(0, |metadata| metadata.len())));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_while_it_saves_a_workspace_leaves_the_version_before() {
    let setup = Setup {
        warm: 1,
        ..Setup::default()
    };
    let mut cluster = Cluster::start(setup).await;
    let agent = json!({"harness": "native", "models": ["scripted/demo"], "tools": ["bash"]});
    let conversation = post(&cluster, "/conversations", &json!({"agent": agent})).await;
    let conversation = conversation["id"].as_str().unwrap().to_owned();
    let first = say(&cluster, &conversation, "echo kept > kept; sha256sum kept > sums").await;
    cluster.api.succeeded(&first, 2 * SOON).await;
    let known: BTreeSet<PathBuf> = archives(&cluster.folder).into_iter().map(|(path, _)| path).collect();
    assert_eq!(known.len(), 1);

    let megabytes = if is_full() { 400 } else { 200 };
    let code = format!("head -c {megabytes}M /dev/urandom > large; sha256sum kept large > sums");
    let second = say(&cluster, &conversation, &code).await;
    let half = eventually(2 * SOON, "the workspace is being saved", || {
        let mut found = archives(&cluster.folder).into_iter();
        found.find(|(path, size)| !known.contains(path) && *size > 1 << 20)
    })
    .await;
    let worker = cluster.api.job(&second).await["worker_id"].as_str().unwrap().to_owned();
    let index = cluster.worker_of(&worker);
    cluster.workers[index].kill();
    let written = fs::metadata(&half.0).unwrap().len();
    report(&format!(
        "killed while it saved: {written} of {} bytes were written",
        megabytes << 20
    ));
    assert!(written < megabytes << 20, "it was saved already");
    let rows = "select version from workspaces";
    assert_eq!(cluster.sql(rows), ["1"], "the version before stays");

    let job = cluster.api.succeeded(&second, 4 * SOON).await;
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(2), &json!(1)), "{job:#}");
    assert_whole(&job, &cluster.api.events(&second).await);
    // A call that had been committed is not made again, so its file may be lost with the worker; the version before is not.
    let is_made_again = cluster.sql(rows) == ["2"];
    // Whole, on whichever worker: what was written matches what was summed up beside it.
    let third = say(&cluster, &conversation, "sha256sum -c sums").await;
    let job = cluster.api.succeeded(&third, 2 * SOON).await;
    let text = job["result"]["text"].as_str().unwrap();
    assert!(text.contains("kept: OK") && !text.contains("FAILED"), "{text}");
    assert_eq!(text.contains("large: OK"), is_made_again, "{text}");
    // In an hour.
    cluster.sql("update workspace_archives set unused_at = unused_at - interval '2 hours'");
    eventually(4 * SOON, "the half of an archive is deleted", || {
        (archives(&cluster.folder).len() == 1).then_some(())
    })
    .await;
}
