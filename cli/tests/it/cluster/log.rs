//! Event logs: that one is whole, and somebody who follows one through whatever happens.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Api;

/// Asserts that the log of an ended job is one strictly increasing sequence from its first event to its one terminal
/// event, that each jump of its numbers is where an attempt was taken over or is announced, and that the last attempt's
/// output in it is the whole output.
pub(crate) fn assert_whole(job: &Value, events: &[Value]) {
    let told = || format!("{job:#}\n{events:#?}");
    let kind = |event: &Value| event["type"].as_str().unwrap().to_owned();
    let is_terminal = |event: &Value| matches!(kind(event).as_str(), "succeeded" | "failed" | "cancelled");
    let seq = |event: &Value| event["seq"].as_u64().unwrap();

    assert_eq!(events.first().map(seq), Some(1), "{}", told());
    for pair in events.windows(2) {
        assert!(seq(&pair[0]) < seq(&pair[1]), "{}", told());
        // The number that a takeover goes on with leaves room for what the dead attempt may have numbered.
        let is_announced = matches!(kind(&pair[1]).as_str(), "attempt_reset" | "resume_gap");
        let is_end = is_terminal(&pair[1]) && job["losses"].as_u64() > Some(0);
        assert!(
            seq(&pair[0]) + 1 == seq(&pair[1]) || is_announced || is_end,
            "a silent hole: {}",
            told()
        );
    }
    assert_eq!(
        events.iter().filter(|event| is_terminal(event)).count(),
        1,
        "{}",
        told()
    );
    assert!(events.last().is_some_and(is_terminal), "{}", told());

    let attempt = &job["attempt"];
    let starts = events
        .iter()
        .filter(|event| kind(event) == "started" && event["attempt"] == *attempt);
    assert_eq!(starts.count(), 1, "{}", told());
    for stream in ["stdout", "stderr"] {
        let mine = events
            .iter()
            .filter(|event| kind(event) == stream && event["attempt"] == *attempt);
        let text: String = mine.map(|event| event["text"].as_str().unwrap()).collect();
        let whole = job["result"][stream].as_str().unwrap_or_default();
        assert_eq!(text, whole, "{}", told());
    }
}

/// `hothouse logs -f` on a job: it reconnects by itself and passes each event on once.
pub(crate) struct Follower {
    child: Child,
}

impl Follower {
    pub(crate) fn start(api: &Api, id: &str) -> Self {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_hothouse")));
        command
            .args([
                "logs",
                "-f",
                "--events",
                "--json",
                "--server",
                &api.address,
                "--key",
                api.key,
                id,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self {
            child: command.spawn().unwrap(),
        }
    }

    /// What it saw, when the job has ended.
    pub(crate) async fn finish(self, limit: Duration) -> Vec<Value> {
        let output = timeout(limit, self.child.wait_with_output())
            .await
            .expect("the follower ends with the job")
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
