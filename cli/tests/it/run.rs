//! `hothouse run` against a server that drops every connection.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::server::{JOB, Play, Server};

fn command(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hothouse"));
    command
        .args(words)
        .args(["--server", &format!("http://{}", server.address), "--key", "hh_test"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn hothouse(server: &Server, words: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(server, words).output().await.unwrap();
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

/// A program that prints `one` to `five` on both outputs by turns.
fn five_lines(last: Value) -> Play {
    Play {
        events: vec![
            ("queued", json!({"position": 0})),
            ("started", json!({"worker": "w"})),
            ("stdout", json!({"text": "one\n"})),
            ("stderr", json!({"text": "two\n"})),
            ("stdout", json!({"text": "thr\u{0}ee\n"})),
            ("stderr", json!({"text": "four\n"})),
            ("stdout", json!({"text": "five"})),
        ],
        last,
        refusals: 0,
        runs_on: false,
    }
}

fn succeeded() -> Value {
    json!({"state": "succeeded", "result": {"exit_code": 0, "signal": null, "artifacts": []}})
}

#[tokio::test]
async fn output_comes_whole_and_once_over_broken_connections() {
    let server = Server::start(five_lines(succeeded())).await;
    let (code, stdout, stderr) = hothouse(&server, &["run", "-c", "print(1)"]).await;
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (0, "one\nthr\0ee\nfive", "two\nfour\n")
    );
    assert_eq!(
        server.seen(|seen| seen.resumed_after.clone()),
        [None, Some(2), Some(4), Some(6)]
    );
}

#[tokio::test]
async fn the_program_s_exit_code_is_passed_on() {
    let failed = |code: &str, result: Value| {
        five_lines(json!({"state": "failed", "error": {"code": code, "message": "It failed"}, "result": result}))
    };
    let cases = [
        (failed("nonzero_exit", json!({"exit_code": 7, "signal": null})), 7, ""),
        (
            failed("nonzero_exit", json!({"exit_code": null, "signal": "SIGSEGV"})),
            139,
            "",
        ),
        (
            failed("timeout", json!({"exit_code": null, "signal": 9})),
            124,
            "hothouse: It failed (timeout)\n",
        ),
        (failed("internal", Value::Null), 1, "hothouse: It failed (internal)\n"),
    ];
    for (play, expected, remark) in cases {
        let server = Server::start(play).await;
        let (code, _, stderr) = hothouse(&server, &["run", "-c", "print(1)"]).await;
        assert_eq!(code, expected);
        assert_eq!(stderr, format!("two\nfour\n{remark}"));
    }
}

#[tokio::test]
async fn a_submission_that_is_repeated_names_the_same_key() {
    let server = Server::start(Play {
        refusals: 2,
        ..five_lines(succeeded())
    })
    .await;
    let (code, stdout, _) = hothouse(&server, &["run", "--detach", "-c", "print(1)"]).await;
    assert_eq!((code, stdout), (0, format!("{JOB}\n")));
    let submissions = server.seen(|seen| seen.submissions.clone());
    assert_eq!(submissions.len(), 3);
    assert!(submissions[0].0.is_some());
    assert!(submissions.iter().all(|submission| *submission == submissions[0]));
    assert_eq!(
        submissions[0].1,
        json!({"kind": "exec", "input": {"language": "python", "code": "print(1)"}})
    );
}

#[tokio::test]
async fn ctrl_c_cancels_the_job_and_waits_for_its_end() {
    let server = Server::start(Play {
        runs_on: true,
        ..five_lines(succeeded())
    })
    .await;
    let mut child = command(&server, &["run", "-c", "print(1)"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "one");

    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    // The echo of a wrapper is not a second Ctrl-C.
    kill(pid, Signal::SIGINT).unwrap();

    let ended = child.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(told.matches("hothouse: ").count(), 1, "{told}");
    assert!(
        told.contains("hothouse: cancelling; Ctrl-C again leaves at once\n"),
        "{told}"
    );
    assert_eq!(server.seen(|seen| seen.cancels), 1);
}

#[tokio::test]
async fn a_job_that_waits_says_what_for() {
    let server = Server::start(Play {
        events: vec![("queued", json!({}))],
        last: json!({"state": "queued", "waiting_for": "queue q is\u{1b} paused"}),
        runs_on: true,
        ..five_lines(succeeded())
    })
    .await;
    for (words, code) in [(&["logs", "-f", JOB] as &[_], 0), (&["run", "-c", "1"], 130)] {
        let mut child = command(&server, words).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.next_line().await.unwrap().unwrap();
        assert_eq!(said, "hothouse: waiting: queue q is\u{fffd} paused");
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(code));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_job() {
    let server = Server::start(Play {
        runs_on: true,
        ..five_lines(succeeded())
    })
    .await;
    let mut child = command(&server, &["run", "-c", "print(1)"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().await.unwrap().code(), Some(141));
    assert_eq!(server.seen(|seen| seen.cancels), 1);
}

#[tokio::test]
async fn artifacts_are_saved_below_the_folder() {
    let folder = env::temp_dir().join(format!("hothouse-it-{}", std::process::id()));
    let url = format!("/api/v1/jobs/{JOB}/artifacts/out/a.txt");
    let artifacts = json!([{"path": "out/a.txt", "size": 20, "url": url}]);
    let last = json!({"state": "succeeded", "result": {"exit_code": 0, "signal": null, "artifacts": artifacts}});
    let server = Server::start(five_lines(last)).await;

    let words = [
        "run",
        "-c",
        "1",
        "--artifact",
        "out/*",
        "--artifacts-dir",
        folder.to_str().unwrap(),
        "--json",
    ];
    let (code, stdout, stderr) = hothouse(&server, &words).await;

    assert_eq!(code, 0, "{stderr}");
    let saved: PathBuf = folder.join("out/a.txt");
    assert_eq!(fs::read_to_string(&saved).unwrap(), "content of out/a.txt");
    let job: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&job["id"], &job["state"]), (&json!(JOB), &json!("succeeded")));
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn no_server_is_one_sentence_that_says_what_to_do() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hothouse"));
    // Port 1 has no listener anywhere that a test runs.
    let output = command
        .args(["jobs", "--server", "http://127.0.0.1:1", "--key", "k"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "hothouse: no server answers at http://127.0.0.1:1/: start one here with `hothouse up`, or name another with \
         --server\n"
    );
}
