//! What is under a sandbox goes away: its engine, its init, its container, its image, the disk.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{one_worker, report, script, within};
use crate::cluster::{
    Cluster, Engine, IMAGE, SOON, assert_whole, eventually, processes_of, processes_of_jobs, until_dead,
};

const FAILED_IN_IT: &str = "the sandbox failed while the job ran in it";

/// The events of this phase that a job's log has, as their details.
async fn waited(cluster: &Cluster, id: &str) -> Vec<String> {
    let events = cluster.api.events(id).await;
    let told = events.iter().filter(|event| event["phase"] == "waiting_for_sandbox");
    told.map(|event| event["detail"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until a job has failed once for the sandbox's sake, and is tried again.
async fn failed_once(cluster: &Cluster, id: &str) {
    let job = cluster.api.job_until(id, SOON, |job| job["failures"] == 1).await;
    assert_eq!(
        (&job["error"]["code"], &job["error"]["message"]),
        (&json!("sandbox_failed"), &json!(FAILED_IN_IT)),
        "{job:#}"
    );
}

async fn succeeds(cluster: &Cluster, id: &str, failures: u32) {
    let job = cluster.api.succeeded(id, 3 * SOON).await;
    assert_eq!(
        (&job["failures"], &job["losses"]),
        (&json!(failures), &json!(0)),
        "{job:#}"
    );
    assert_eq!(job["result"]["stdout"], "begin\nend\n");
    assert_whole(&job, &cluster.api.events(id).await);
}

async fn fails(cluster: &Cluster, id: &str, limit: Duration) -> Value {
    let job = cluster.api.ended(id, limit).await;
    assert_eq!(
        (&job["state"], &job["error"]["code"]),
        (&json!("failed"), &json!("sandbox_failed")),
        "{job:#}"
    );
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_restarted_costs_a_try_and_nothing_else() {
    let engine = Engine::start();
    let before = engine.remains();
    let mut cluster = Cluster::start_on(one_worker(8, 2, &[]), Some(&engine)).await;
    let submit = |tries| cluster.api.submit_all(vec![script(20, tries); 3]);

    // As its service restarts it: it ends its containers itself.
    let jobs = submit(2).await;
    for id in &jobs {
        cluster.api.printed(id, 1, "begin").await;
    }
    engine.stop();
    for id in &jobs {
        failed_once(&cluster, id).await;
    }
    let queued = cluster.api.submit(script(1, 1)).await;
    engine.begin();
    let back = Instant::now();
    for id in &jobs {
        succeeds(&cluster, id, 1).await;
    }
    succeeds(&cluster, &queued, 0).await;
    report(&format!(
        "restarted engine: all jobs have run {:.1} s after it was back",
        back.elapsed().as_secs_f64()
    ));

    // Killed, with its containers left to nobody.
    let jobs = submit(2).await;
    for id in &jobs {
        cluster.api.printed(id, 1, "begin").await;
    }
    // A warm sandbox runs nothing, so it has no lease that would end it before the engine is back.
    let processes = processes_of_jobs(&engine.inits());
    engine.kill();
    within(
        "killed engine: its jobs are dead",
        until_dead(&processes, SOON),
        Duration::from_secs(6),
    );
    for id in &jobs {
        failed_once(&cluster, id).await;
    }
    engine.begin();
    for id in &jobs {
        succeeds(&cluster, id, 1).await;
    }
    assert!(cluster.workers[0].terminate(SOON).await.success());
    // An engine that is killed never removes the cgroups of what ran then, nor what it was making. Both are empty.
    engine.until_clean_but_for_its_own(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_dies_and_a_container_that_is_removed_cost_a_try() {
    let engine = Engine::start();
    let mut cluster = Cluster::start_on(one_worker(4, 0, &[]), Some(&engine)).await;

    let killed = cluster.api.submit(script(15, 2)).await;
    cluster.api.printed(&killed, 1, "begin").await;
    let inits = engine.inits();
    let processes = processes_of(&inits);
    kill(Pid::from_raw(inits[0]), Signal::SIGKILL).unwrap();
    within(
        "dead init: its processes are dead",
        until_dead(&processes, SOON),
        Duration::from_millis(250),
    );
    failed_once(&cluster, &killed).await;
    succeeds(&cluster, &killed, 1).await;

    // One that stands still hears of no lease and ends no job whose time is over; its worker finds out.
    let stopped = json!({
        "kind": "exec", "timeout": "2s", "max_attempts": 1,
        "input": {"command": ["sh", "-c", "echo begin; sleep 60"]},
    });
    let stopped = cluster.api.submit(stopped).await;
    cluster.api.printed(&stopped, 1, "begin").await;
    let init = *engine.inits().iter().max().unwrap();
    kill(Pid::from_raw(init), Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let job = fails(&cluster, &stopped, SOON).await;
    within(
        "init that stands still: its job has failed",
        begun.elapsed(),
        Duration::from_secs(20),
    );
    assert_eq!(
        job["error"]["message"], "the sandbox stopped answering while the job ran in it",
        "{job:#}"
    );
    until_dead(&BTreeSet::from([init]), SOON);

    let removed = cluster.api.submit(script(15, 2)).await;
    cluster.api.printed(&removed, 1, "begin").await;
    let containers = engine.containers();
    assert_eq!(containers.len(), 1);
    engine.ask(&["rm", "-f", &containers[0]]);
    failed_once(&cluster, &removed).await;
    succeeds(&cluster, &removed, 1).await;

    // Without a try left it fails, and says so.
    let last = cluster.api.submit(script(60, 1)).await;
    cluster.api.printed(&last, 1, "begin").await;
    engine.ask(&["rm", "-f", &engine.containers()[0]]);
    let job = fails(&cluster, &last, SOON).await;
    assert_eq!(job["error"]["message"], FAILED_IN_IT, "{job:#}");
    assert!(cluster.workers[0].terminate(SOON).await.success());
    eventually(SOON, "no container is left", || {
        engine.containers().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_is_told_to_jobs_and_missed_no_longer_than_it_is_gone() {
    let engine = Engine::start();
    let cluster = Cluster::start_on(one_worker(4, 1, &[]), Some(&engine)).await;
    let before = cluster.api.submit(script(20, 1)).await;
    cluster.api.printed(&before, 1, "begin").await;
    eventually(SOON, "another is warm", || (engine.inits().len() == 2).then_some(())).await;

    engine.ask(&["rmi", "-f", IMAGE]);
    // What runs runs on, and what is warm still serves.
    succeeds(&cluster, &before, 0).await;
    succeeds(&cluster, &cluster.api.submit(script(1, 1)).await, 0).await;
    let without = cluster.api.submit(script(1, 2)).await;
    let job = fails(&cluster, &without, SOON).await;
    let told = format!("the image of its environment, {IMAGE:?}, is not there");
    assert_eq!(
        (&job["error"]["message"], &job["failures"]),
        (&json!(told), &json!(2)),
        "{job:#}"
    );

    engine.load_image();
    let back = Instant::now();
    let after = cluster.api.submit(script(1, 20)).await;
    let job = cluster.api.succeeded(&after, 2 * SOON).await;
    report(&format!(
        "image back: a job has run {:.1} s later, failures {}",
        back.elapsed().as_secs_f64(),
        job["failures"]
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_jobs_up_and_fails_none() {
    let engine = Engine::start_in(Some(96));
    let settings = &[
        ("HOTHOUSE_WORKER__SANDBOX_SLOTS", "2"),
        ("HOTHOUSE_SANDBOX__CHECK_OUT_TIMEOUT", "5s"),
    ];
    // As many as there are slots: a third, which load asks for, would fail to start before anybody waits for it.
    let mut cluster = Cluster::start_on(one_worker(2, 1, settings), Some(&engine)).await;
    let running = cluster.api.submit(script(40, 1)).await;
    cluster.api.printed(&running, 1, "begin").await;
    eventually(SOON, "another is warm", || (engine.inits().len() == 2).then_some(())).await;
    engine.fill_disk();
    let full = Instant::now();
    // The warm one serves its job; the next waits, and says what for.
    let held = cluster.api.submit_all(vec![script(1, 1); 4]).await;
    let told = "the machine that starts sandboxes has no room left on its disk";
    let mut reasons = Vec::new();
    while !reasons.iter().any(|reason: &String| reason == told) {
        assert!(
            full.elapsed() < 2 * SOON,
            "no job says what it waits for: {:?}",
            cluster.workers[0].last_words()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        for id in &held {
            reasons.extend(waited(&cluster, id).await);
        }
    }
    // Those that nobody claims meanwhile say it too.
    let queued = cluster.api.submit(script(1, 1)).await;
    let says = |job: &Value| {
        let reason = job["waiting_for"].as_str().unwrap_or_default();
        reason.starts_with("a free slot: no live worker has room left on its disk to start a sandbox; position")
    };
    cluster.api.job_until(&queued, 2 * SOON, says).await;
    // What runs is not touched by it, and jobs without a sandbox go on.
    succeeds(&cluster, &running, 0).await;
    let noop = cluster.api.submit(json!({"kind": "noop"})).await;
    cluster.api.succeeded(&noop, SOON).await;
    // Longer than a job waits for a sandbox: then it goes back to the queue.
    eventually(2 * SOON, "a job goes back", || {
        let back = "select count(*) from jobs where state = 'queued' and attempt > 0 and failures = 0";
        (cluster.sql(back) != ["0"]).then_some(())
    })
    .await;

    engine.free_disk();
    let free = Instant::now();
    for id in held.iter().chain([&queued]) {
        succeeds(&cluster, id, 0).await;
    }
    report(&format!(
        "disk free again: all jobs have run {:.1} s later",
        free.elapsed().as_secs_f64()
    ));
    assert!(cluster.workers[0].terminate(SOON).await.success());
    eventually(SOON, "no container is left", || {
        engine.containers().is_empty().then_some(())
    })
    .await;
}
