//! Starts of bubblewrap sandboxes that are given up, at any moment, and what they leave behind: nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::poll;
use tokio::task::{JoinSet, yield_now};
use uuid::Uuid;
use worker::driver::bubblewrap::{Bubblewrap, Settings};
use worker::driver::{SandboxDriver, Spec};

use crate::conformance::small;
use crate::docker::{eventually, test_variable};
use crate::sandbox_bubblewrap::{driver_in, init};

/// Starts that are given up.
const STARTS: u32 = 200;

/// Stands still after the sandbox's first process was made and before that is told to go on: what is to be said about it
/// goes into a pipe that is full.
const STUCK: &str = r#"mkfifo "$0.pipe"; exec 7<>"$0.pipe"; dd if=/dev/zero of="$0.pipe" bs=4096 oflag=nonblock 2>/dev/null
exec 8>&7 bwrap "$@""#;

/// Waits before there is any sandbox, until somebody writes to the gate.
const GATED: &str = r#"mkfifo "$0.gate"; : >"$0.waits"; read -r go <"$0.gate"; exec bwrap "$@""#;

/// A driver in this folder whose `bwrap` is this script.
fn driver_with(folder: &Path, script: &str) -> Bubblewrap {
    let bwrap = folder.join("bwrap");
    fs::write(&bwrap, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&bwrap, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = Settings {
        init: init(),
        state: folder.join("state"),
        bwrap,
    };
    Bubblewrap::new(settings).unwrap()
}

fn spec(worker_id: Uuid) -> Spec {
    Spec {
        id: Uuid::now_v7(),
        worker_id,
        environment: "starts".to_owned(),
        image: String::new(),
        image_id: None,
        profile: small(),
    }
}

/// The processes that were started with this folder, or see it among their mounts, as init does.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.to_str().unwrap();
    let is_its = |process: &PathBuf| {
        let names = |file: &str| {
            let text = fs::read(process.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(folder)
        };
        names("cmdline") || names("mountinfo")
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(|process| process.join("cmdline").exists() && is_its(process))
        .collect()
}

async fn nothing_is_left(driver: &Bubblewrap, worker_id: Uuid, folder: &Path) {
    eventually("no process is left", async || processes(folder).is_empty()).await;
    let of_ours = async || {
        let all = driver.list().await.unwrap();
        all.into_iter()
            .filter(|found| found.worker_id == worker_id)
            .collect::<Vec<_>>()
    };
    eventually("no cgroup is left", async || of_ours().await.is_empty()).await;
}

#[tokio::test]
async fn a_start_that_is_dropped_at_any_moment_leaves_nothing() {
    let (folder, worker_id) = (tempfile::tempdir().unwrap(), Uuid::now_v7());
    let driver = driver_in(&folder.path().join("state"));
    let begun = Instant::now();
    drop(driver.start(&spec(worker_id)).await.unwrap());
    // The first one takes longest. Nothing is learnt of a start that is over before it is given up.
    let mut whole = begun.elapsed();
    let (mut dropped, mut done) = (0, 0);
    for number in 0..STARTS {
        let (spec, begun) = (spec(worker_id), Instant::now());
        let until = whole * number / (STARTS * 3 / 4);
        let mut start = pin!(driver.start(&spec));
        // Polled without rest: a timer would be too coarse.
        let is_done = loop {
            if poll!(&mut start).is_ready() {
                whole = whole.min(begun.elapsed());
                break true;
            }
            if begun.elapsed() >= until {
                break false;
            }
            yield_now().await;
        };
        *(if is_done { &mut done } else { &mut dropped }) += 1;
    }
    assert!(dropped > STARTS / 4, "{dropped} were dropped, {done} were done");
    nothing_is_left(&driver, worker_id, folder.path()).await;
}

#[tokio::test]
async fn so_does_one_whose_first_process_was_not_told_to_go_on() {
    let (folder, worker_id) = (tempfile::tempdir().unwrap(), Uuid::now_v7());
    let driver = std::sync::Arc::new(driver_with(folder.path(), STUCK));
    // The one outside and the one inside.
    let are_two = async || processes(folder.path()).len() == 2;
    let mut starts = JoinSet::new();
    let starting = std::sync::Arc::clone(&driver);
    starts.spawn(async move { starting.start(&spec(worker_id)).await.is_ok() });
    eventually("the first process is made", are_two).await;
    starts.shutdown().await;
    nothing_is_left(&driver, worker_id, folder.path()).await;

    fs::remove_file(folder.path().join("bwrap.pipe")).unwrap();
    let checking = std::sync::Arc::clone(&driver);
    starts.spawn(async move { checking.check().await.is_ok() });
    eventually("the first process is made", are_two).await;
    starts.shutdown().await;
    nothing_is_left(&driver, worker_id, folder.path()).await;
}

/// A process that makes a child as `vfork` does hears no stop before that child is over.
const DEAF: &str = r#"exec python3 -c '
import ctypes, time
if ctypes.CDLL(None).vfork() == 0:
    open("'"$0"'.deaf", "w").close()
    time.sleep(60)
'"#;

#[tokio::test]
async fn giving_up_a_start_holds_up_no_thread_of_the_runtime() {
    let (folder, worker_id) = (tempfile::tempdir().unwrap(), Uuid::now_v7());
    let driver = driver_with(folder.path(), DEAF);
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let spec = spec(worker_id);
        let mut start = Box::pin(driver.start(&spec));
        let deaf = folder.path().join("bwrap.deaf");
        let is_deaf = eventually("it hears nothing", async || deaf.exists());
        tokio::select! {
            _ = &mut start => unreachable!("it never makes a sandbox"),
            () = is_deaf => {}
        }
        let begun = Instant::now();
        drop(start);
        shortest = shortest.min(begun.elapsed());
        fs::remove_file(deaf).unwrap();
    }
    assert!(shortest < Duration::from_millis(100), "{shortest:?}");
    nothing_is_left(&driver, worker_id, folder.path()).await;
}

/// Started by the test below.
#[tokio::test]
async fn started_by_another_process() {
    let Some(folder) = test_variable("HOTHOUSE_TEST_HOLD") else {
        return;
    };
    let driver = driver_with(Path::new(&folder), GATED);
    let started = driver.start(&spec(Uuid::now_v7())).await;
    assert!(started.is_err(), "the test kills this process before");
}

#[tokio::test]
async fn a_worker_that_dies_before_it_hears_of_its_sandbox_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut starter = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["bubblewrap_starts::started_by_another_process", "--exact"])
        .env("HOTHOUSE_TEST_HOLD", folder.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    eventually("it is about to make the sandbox", async || {
        folder.path().join("bwrap.waits").exists()
    })
    .await;
    starter.start_kill().unwrap();
    starter.wait().await.unwrap();
    let alone = processes(folder.path());
    assert_eq!(alone.len(), 1, "it goes on alone");
    fs::write(folder.path().join("bwrap.gate"), "go\n").unwrap();
    // It names nothing for a moment, while it becomes another program.
    eventually("the one outside has ended", async || !alone[0].exists()).await;
    eventually("no process is left", async || processes(folder.path()).is_empty()).await;
}
