//! The docker driver against a real engine, at `HOTHOUSE_TEST_DOCKER_HOST`, with the image that the test command
//! built.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use assert_matches::assert_matches;
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;
use worker::driver::docker::{DockerDriver, Settings};
use worker::driver::{Error, Found, Pipe, Profile, SandboxDriver, Spec};
use worker::sandbox::{Output, RunSpec, Sandbox, Settings as SandboxSettings};

use crate::conformance::{Subject, conformance, small};

conformance!(subject);

pub(crate) async fn subject() -> Subject {
    let driver = driver();
    driver.check().await.unwrap();
    Subject {
        driver,
        image: image(),
        profile: small(),
        worker_id: Uuid::now_v7(),
        guard: Box::new(()),
    }
}

/// A driver for the tests' engine.
pub(crate) fn driver() -> Arc<DockerDriver> {
    let host = test_variable("HOTHOUSE_TEST_DOCKER_HOST").expect("the test command sets HOTHOUSE_TEST_DOCKER_HOST");
    driver_at(host)
}

/// A driver for an engine at an address.
pub(crate) fn driver_at(host: String) -> Arc<DockerDriver> {
    Arc::new(DockerDriver::new(Settings {
        host: Some(host),
        // Another runtime of the engine than its own, to see what holds in it.
        runtime: test_variable("HOTHOUSE_TEST_DOCKER_RUNTIME"),
        ..Settings::default()
    }))
}

/// The image that the test command built.
pub(crate) fn image() -> String {
    test_variable("HOTHOUSE_TEST_IMAGE").unwrap_or_else(|| "hothouse/default:current".to_owned())
}

#[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
pub(crate) fn test_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Small, so that many fit on the machine.
pub(crate) fn profile() -> Profile {
    Profile {
        memory_bytes: 128 << 20,
        workspace_bytes: 16 << 20,
        tmp_bytes: 16 << 20,
        ..Profile::default()
    }
}

pub(crate) fn spec(worker_id: Uuid) -> Spec {
    Spec {
        id: Uuid::now_v7(),
        worker_id,
        environment: "default".to_owned(),
        image: image(),
        image_id: None,
        profile: profile(),
    }
}

/// Sandboxes of one worker.
pub(crate) async fn of(driver: &dyn SandboxDriver, worker_id: Uuid) -> Vec<Found> {
    let found = driver.list().await.unwrap();
    found.into_iter().filter(|found| found.worker_id == worker_id).collect()
}

/// Waits for a condition, at most 20 s.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn connect(pipe: Pipe) -> Sandbox {
    let settings = SandboxSettings {
        must_have_own_uid: true,
        ..SandboxSettings::default()
    };
    Sandbox::connect(pipe, &settings).await.unwrap()
}

/// What a shell script prints.
pub(crate) async fn sh(sandbox: &Sandbox, script: &str) -> String {
    let mut spec = RunSpec::new(["/bin/sh", "-c", script]);
    spec.env = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())];
    let mut running = sandbox.run(spec).await.unwrap();
    let mut text = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(bytes) | Output::Stderr(bytes) = output {
            text.extend_from_slice(&bytes);
        }
    }
    running.wait().await.unwrap();
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[tokio::test]
async fn a_sandbox_is_found_by_its_worker_and_destroyed_more_than_once() {
    let driver = driver();
    let spec = spec(Uuid::now_v7());
    let sandbox = connect(driver.start(&spec).await.unwrap()).await;
    let found = of(&*driver, spec.worker_id).await;
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [spec.id]);

    driver.destroy(spec.id).await.unwrap();
    eventually("the client sees that its sandbox is gone", async || !sandbox.is_alive()).await;
    driver.destroy(spec.id).await.unwrap();
    driver.destroy(Uuid::now_v7()).await.unwrap();
    eventually("it is not listed", async || {
        of(&*driver, spec.worker_id).await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_job_has_no_privilege_no_network_and_nothing_of_the_host() {
    let driver = driver();
    let spec = spec(Uuid::now_v7());
    let sandbox = connect(driver.start(&spec).await.unwrap()).await;
    let status = sh(&sandbox, "cat /proc/self/status").await;
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("Uid:"), "1000 1000 1000 1000");
    assert_eq!(line("Groups:"), "");
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (line("NoNewPrivs:"), line("Seccomp:")),
        ("1".to_owned(), "2".to_owned())
    );
    assert_eq!(sh(&sandbox, "ls /sys/class/net").await, "lo");
    assert_eq!(
        sh(&sandbox, "echo x 2>&1 > /usr/x").await,
        "/bin/sh: 1: cannot create /usr/x: Read-only file system"
    );
    assert_eq!(sh(&sandbox, "find / -xdev -type f -perm /6000 2>/dev/null").await, "");
    assert_eq!(
        sh(&sandbox, "ls -A /workspace /tmp | tr '\\n' ' '").await,
        "/tmp:  /workspace:"
    );
    assert_eq!(
        sh(&sandbox, "stat -c '%a %u' /workspace /tmp | tr '\\n' ' '").await,
        "700 1000 1777 0"
    );
    assert_matches!(sh(&sandbox, "unshare -U true 2>&1").await, text if text.contains("not permitted"));
    assert_eq!(sh(&sandbox, "grep -c docker.sock /proc/mounts").await, "0");
    driver.destroy(spec.id).await.unwrap();
}

#[tokio::test]
async fn the_image_runs_what_the_environment_promises() {
    let driver = driver();
    let larger = Profile {
        memory_bytes: 512 << 20,
        ..profile()
    };
    let spec = Spec {
        profile: larger,
        ..spec(Uuid::now_v7())
    };
    let sandbox = connect(driver.start(&spec).await.unwrap()).await;
    let libraries = "import numpy, pandas, matplotlib, seaborn, requests, bs4; print('libraries')";
    assert_eq!(
        sh(&sandbox, &format!("HOME=/workspace python3 -c \"{libraries}\"")).await,
        "libraries"
    );
    assert_eq!(sh(&sandbox, "node -e 'console.log(1 + 1)'").await, "2");
    let typescript = "cd /workspace && echo 'const n: number = await Promise.resolve(3); console.log(n, __dirname);' \
                      > main.ts && run-typescript main.ts";
    assert_eq!(sh(&sandbox, typescript).await, "3 /workspace");
    assert_eq!(sh(&sandbox, "git --version | cut -d' ' -f1,2").await, "git version");
    driver.destroy(spec.id).await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_not_there_is_told_apart_from_an_engine_that_is_away() {
    let worker_id = Uuid::now_v7();
    let missing = Spec {
        image: "hothouse/no-such:image".to_owned(),
        ..spec(worker_id)
    };
    let error = driver().start(&missing).await.unwrap_err();
    assert_matches!(&error, Error::NoSuchImage { image } if *image == missing.image);
    assert!(!error.is_transient());

    for host in ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"] {
        let away = driver_at(host.to_owned());
        let error = away.start(&spec(worker_id)).await.unwrap_err();
        assert_matches!(&error, Error::Unavailable { .. }, "{host}");
        assert!(error.is_transient());
        assert_matches!(away.check().await, Err(Error::Unavailable { .. }));
    }
    driver().check().await.unwrap();
    assert_eq!(of(&*driver(), worker_id).await, []);
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_container() {
    let driver = driver();
    // More files than the kernel can count: the engine creates the container and cannot start it.
    let spec = Spec {
        profile: Profile {
            nofile: u64::MAX >> 1,
            ..profile()
        },
        ..spec(Uuid::now_v7())
    };
    assert_matches!(driver.start(&spec).await, Err(Error::Start { .. }));
    assert_eq!(of(&*driver, spec.worker_id).await, []);
}

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
async fn held_by_another_process() {
    let Some(worker_id) = test_variable("HOTHOUSE_TEST_HOLD") else {
        return;
    };
    let spec = spec(worker_id.parse().unwrap());
    let sandbox = connect(driver().start(&spec).await.unwrap()).await;
    let running = sandbox.run(RunSpec::new(["/bin/sleep", "50"])).await.unwrap();
    say_held();
    assert!(running.wait().await.is_err(), "the test kills this process before");
}

#[expect(clippy::print_stdout, reason = "the killer listens")]
fn say_held() {
    println!("\nheld");
}

#[tokio::test]
async fn a_worker_that_is_killed_takes_its_sandboxes_with_it() {
    let driver = driver();
    let worker_id = Uuid::now_v7();
    let mut holder = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["docker::held_by_another_process", "--exact", "--nocapture"])
        .env("HOTHOUSE_TEST_HOLD", worker_id.to_string())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    while lines.next_line().await.unwrap().expect("the holder holds a sandbox") != "held" {}
    assert_eq!(of(&*driver, worker_id).await.len(), 1);

    let killed = std::time::Instant::now();
    holder.start_kill().unwrap();
    eventually("the sandbox is gone", async || of(&*driver, worker_id).await.is_empty()).await;
    assert!(killed.elapsed() < Duration::from_secs(5));
}
