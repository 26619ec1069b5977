//! The attempts of `hothouse verify`, against real sandboxes and against places that are not sealed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tokio::process::Command;
use worker::environment::Environment;
use worker::sandbox::Settings;
use worker::verify::{self, Attempt, Bench, Finding, PRELUDE};

use crate::docker::{driver, image, test_variable};
use crate::sandbox_bubblewrap;

fn bench() -> Bench {
    let environment = Environment::built_in().with_image(image());
    let settings = Settings {
        must_have_own_uid: true,
        ..Settings::default()
    };
    Bench::new(driver(), Arc::new(environment), settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attempt_fails() {
    let bench = bench();
    let findings = verify::verify(&bench, &verify::attempts(), |_| {}).await;
    bench.clear().await.unwrap();
    let broken: Vec<&Finding> = findings.iter().filter(|finding| !finding.verdict.has_held()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(findings.len() >= 120);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attempt_that_applies_fails_in_bubblewrap_too() {
    let state = tempfile::tempdir().unwrap();
    let driver = sandbox_bubblewrap::driver_in(state.path());
    let settings = Settings {
        must_have_own_uid: nix::unistd::geteuid().is_root(),
        ..Settings::default()
    };
    let bench = Bench::new(Arc::new(driver), Arc::new(Environment::built_in()), settings);
    let findings = verify::verify(&bench, &verify::attempts(), |_| {}).await;
    bench.clear().await.unwrap();
    let broken: Vec<&Finding> = findings.iter().filter(|finding| !finding.verdict.is_fine()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let held = findings.iter().filter(|finding| finding.verdict.has_held()).count();
    assert!(held >= findings.len() - 5, "{held} of {}", findings.len());
}

/// Attempts that change nothing on a machine that lets them through, and must be let through by one without a seal:
/// the proof that these can tell.
const TELL: &[&str] = &[
    "read init's environment",
    "open init's memory",
    "look through init's root",
    "see init's namespaces",
    "make init slow",
    "mount something",
    "make a mount namespace",
    "make a network namespace",
    "make a user namespace",
    "change the root",
    "become root",
    "have a capability",
    "gain rights by a program",
    "call the kernel without a filter",
    "make a device",
    "make a memory device",
    "write to the root",
    "write to the programs",
    "write to the accounts",
    "read the passwords",
    "make a raw socket",
    "make a packet socket",
    "ask the kernel for a pair of internet sockets",
    "go before others",
    "find a secret in the environment",
    "preload a library into everything",
    "rename the machine",
];

/// Runs the program of an attempt in a container without a seal: what it said.
async fn unsealed(attempt: &Attempt) -> (&'static str, String) {
    let host = test_variable("HOTHOUSE_TEST_DOCKER_HOST").unwrap();
    let mut docker = Command::new("docker");
    docker.args(["--host", &host, "run", "--rm", "--network", "none", "--user", "0"]);
    for capability in ["SYS_ADMIN", "SYS_PTRACE", "SYS_NICE", "NET_ADMIN"] {
        docker.args(["--cap-add", capability]);
    }
    docker.args([
        "--security-opt",
        "seccomp=unconfined",
        "--env",
        "A_TOKEN=x",
        "--workdir",
        "/",
    ]);
    docker.args(["--entrypoint", "sh", &image(), "-c"]);
    // The program is not PID 1 itself, which is what some attempts are about.
    let script = "mkdir -p /workspace; timeout 20 python3 -c \"$0\" \"$1\"; true";
    docker.args([script, PRELUDE, attempt.program().unwrap().code]);
    let output = docker.stdin(Stdio::null()).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (attempt.name, String::from_utf8_lossy(&said).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_succeed_where_nothing_is_sealed() {
    let wanted: BTreeSet<&str> = TELL.iter().copied().collect();
    let attempts: Vec<Attempt> = verify::attempts()
        .into_iter()
        .filter(|attempt| wanted.contains(attempt.name))
        .collect();
    assert_eq!(attempts.len(), TELL.len(), "every name is that of an attempt");
    let said: Vec<_> = stream::iter(&attempts).map(unsealed).buffered(4).collect().await;
    let silent: Vec<_> = said.iter().filter(|(_, line)| !line.starts_with("BROKEN")).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}
