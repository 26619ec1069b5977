//! Workers that are killed at any moment of a sandbox's life, again and again, and what they leave behind: nothing, once
//! the next worker has looked.
//!
//! `HOTHOUSE_KILL_CYCLES` says how often; `make faults` does it a thousand times.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;
use uuid::Uuid;
use worker::driver::SandboxDriver;

use crate::docker::{driver, eventually, of, test_variable};
use crate::environments::docker;

/// What the kernel and the engine have of this worker's sandboxes.
async fn left(worker_id: Uuid) -> usize {
    of(&*driver(), worker_id).await.len()
}

/// Mounts of containers on this machine.
fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/mounts").unwrap();
    let places = text.lines().filter_map(|line| line.split(' ').nth(1));
    places
        .filter(|place| place.contains("/overlay2/"))
        .map(str::to_owned)
        .collect()
}

/// Kills a process that holds a sandbox with a program, after `after`; whether it held one by then.
async fn cycle(worker_id: Uuid, after: Option<Duration>) -> bool {
    let mut holder = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["docker::held_by_another_process", "--exact", "--nocapture"])
        .env("HOTHOUSE_TEST_HOLD", worker_id.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let held = async { while lines.next_line().await.unwrap().expect("the holder holds a sandbox") != "held" {} };
    let holds = match after {
        None => timeout(Duration::from_secs(30), held).await.is_ok(),
        Some(after) => timeout(after, held).await.is_ok(),
    };
    holder.start_kill().unwrap();
    holder.wait().await.unwrap();
    holds
}

/// Containers of this worker that run, or have run and are being removed.
async fn begun(worker_id: Uuid) -> usize {
    let label = format!("label=hothouse.worker={worker_id}");
    let mut words = vec!["ps", "--all", "--quiet", "--filter", &label];
    for state in ["status=running", "status=removing", "status=exited", "status=dead"] {
        words.extend(["--filter", state]);
    }
    docker(&words).await.lines().count()
}

/// Destroys what no end of a worker removes, a container that was created and never started, as the pool's reaper does;
/// how many there were. Those that ran are gone by themselves.
async fn reap(driver: &dyn SandboxDriver, worker_id: Uuid) -> u32 {
    eventually("those that ran are gone", async || begun(worker_id).await == 0).await;
    let mut orphans = 0;
    for found in of(driver, worker_id).await {
        orphans += 1;
        driver.destroy(found.id).await.unwrap();
    }
    orphans
}

#[tokio::test]
async fn workers_that_are_killed_leave_nothing_behind() {
    let cycles: u32 = test_variable("HOTHOUSE_KILL_CYCLES").map_or(12, |text| text.parse().unwrap());
    let (driver, worker_id, before) = (driver(), Uuid::now_v7(), mounts());
    let (begun, mut held, mut orphans) = (Instant::now(), 0, 0);
    for number in 0..cycles {
        // Every other one in the middle of a start: the moments go through all of it.
        let after = (number % 2 == 1).then(|| Duration::from_millis(u64::from(number * 7 % 400)));
        held += u32::from(cycle(worker_id, after).await);
        if number % 20 == 19 || number + 1 == cycles {
            orphans += reap(&*driver, worker_id).await;
        }
    }
    eventually("nothing is listed", async || left(worker_id).await == 0).await;
    show(&format!(
        "{cycles} kills in {:.0} s: {held} of workers that held a sandbox; {orphans} containers were the reaper's",
        begun.elapsed().as_secs_f64()
    ));
    assert!(held >= cycles / 2, "{held} of {cycles}");
    if test_variable("HOTHOUSE_FAULTS").is_some() {
        // Alone on its engine: nothing else comes and goes.
        eventually("no mount is left", async || mounts().is_subset(&before)).await;
    }
}

#[expect(clippy::print_stderr, reason = "what a long run did")]
fn show(text: &str) {
    eprintln!("{text}");
}
