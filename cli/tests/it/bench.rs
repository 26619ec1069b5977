//! `hothouse bench`: its arithmetic, its checks, and that they fail when they should.

use serde_json::Value;
use tokio::process::Command;

use crate::ledger::{self, Fault};

async fn bench(fault: Fault, words: &[&str]) -> (i32, Value) {
    let (address, _tasks) = ledger::start(fault).await;
    let output = Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .arg("bench")
        .args(words)
        .args(["--json", "--key", "hh_secret", "--server", &format!("http://{address}")])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("hh_secret"), "{text}");
    let told = String::from_utf8(output.stderr).unwrap();
    let report = serde_json::from_str(&text);
    assert!(report.is_ok(), "{report:?} {text} {told}");
    (output.status.code().unwrap(), report.unwrap())
}

const SUBMIT: &[&str] = &["submit", "--seconds", "1", "--warm-up", "0", "--connections", "4"];
const THROUGHPUT: &[&str] = &[
    "throughput",
    "--seconds",
    "1",
    "--warm-up",
    "0",
    "--connections",
    "1",
    "--batch",
    "5",
];

#[tokio::test]
async fn submissions_are_counted_and_found_again() {
    let (code, report) = bench(Fault::None, SUBMIT).await;
    let findings = &report["findings"];
    assert_eq!(code, 0, "{report:#}");
    assert!(findings["accepted"]["value"].as_f64().unwrap() > 0.0);
    assert_eq!(
        findings["accepted"]["value"].as_f64(),
        findings["latency"]["count"].as_f64()
    );
    assert!(findings["latency"]["p50_ms"].as_f64() <= findings["latency"]["p99_ms"].as_f64());
    assert_eq!(report["machine"]["server"]["postgres"], "16.1");
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_rate_is_kept() {
    let (code, report) = bench(Fault::None, &[SUBMIT, &["--rate", "50"]].concat()).await;
    assert_eq!(code, 0, "{report:#}");
    let count = report["findings"]["latency"]["count"].as_u64().unwrap();
    assert!((1..=50).contains(&count), "{count} calls in a second");
}

#[tokio::test]
async fn an_accepted_job_that_is_not_there_is_found_out() {
    let (code, report) = bench(Fault::LosesOne, SUBMIT).await;
    assert_eq!((code, &report["sound"]), (1, &Value::Bool(false)), "{report:#}");
    assert_eq!(report["findings"]["all_there"]["holds"], false);
}

#[tokio::test]
async fn every_job_of_a_throughput_run_is_accounted_for() {
    let (code, report) = bench(Fault::None, THROUGHPUT).await;
    assert_eq!(code, 0, "{report:#}");
    assert!(report["findings"]["ended"]["value"].as_f64().unwrap() > 0.0);
    for check in ["one_row_a_job", "all_succeeded", "logs_whole"] {
        assert_eq!(report["findings"][check]["holds"], true, "{report:#}");
    }
}

#[tokio::test]
async fn a_lost_job_fails_a_throughput_run() {
    let (code, report) = bench(Fault::LosesOne, THROUGHPUT).await;
    assert_eq!(
        (code, &report["findings"]["one_row_a_job"]["holds"]),
        (1, &Value::Bool(false)),
        "{report:#}"
    );
}

#[tokio::test]
async fn a_log_with_two_ends_fails_a_throughput_run() {
    let (code, report) = bench(Fault::EndsTwice, THROUGHPUT).await;
    assert_eq!(
        (code, &report["findings"]["logs_whole"]["holds"]),
        (1, &Value::Bool(false)),
        "{report:#}"
    );
}

#[tokio::test]
async fn pick_up_is_taken_from_the_rows_and_from_the_events() {
    let (code, report) = bench(Fault::None, &["pickup", "--jobs", "5", "--pause", "0"]).await;
    assert_eq!(code, 0, "{report:#}");
    for measure in ["call___started_at", "created___started", "call___event"] {
        assert_eq!(report["findings"][measure]["count"], 5, "{report:#}");
    }
}
