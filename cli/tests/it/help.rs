//! What `--help` says is a promise; these snapshots show when it changes.

use std::process::Command;

fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .args(words)
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_commands() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn run() {
    insta::assert_snapshot!(help(&["run"]));
}

#[test]
fn jobs() {
    insta::assert_snapshot!(help(&["jobs"]));
}

#[test]
fn whatever_has_a_list_has_the_word_for_it() {
    for what in [
        "agents",
        "approvals",
        "budgets",
        "env",
        "jobs",
        "keys",
        "queues",
        "schedules",
        "tenants",
        "workers",
    ] {
        assert!(help(&[what, "list"]).starts_with("List "), "{what}");
    }
}

#[test]
fn a_wrong_option_is_a_usage_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .args(["run", "-c", "1", "--priority", "10"])
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("10 is not in 0..=9"));
}
