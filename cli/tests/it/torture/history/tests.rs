//! Histories that may not be: each rule is shown one that it refuses, and all of them accept the good one.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Attempt, Event, Expects, Followed, History, Row, Sighting, Submission, Told, check};

/// A noop that simply ran.
const NOOP: Uuid = Uuid::from_u128(1);
/// A program whose first worker was lost together with Redis, and that holds a place of key `k`.
const EXEC: Uuid = Uuid::from_u128(2);
/// Another program with a place of key `k`, later; it fails as it should after two tries.
const FAILS: Uuid = Uuid::from_u128(3);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

fn submission(token: &str, id: Uuid) -> Submission {
    Submission {
        token: token.to_owned(),
        tenant: "t".to_owned(),
        answer: Answer::Accepted(vec![id]),
        has_key: false,
        expects: Expects::Succeeds,
        is_sandboxed: id != NOOP,
        limit: (id != NOOP).then(|| ("k".to_owned(), 1)),
        cancel_asked: false,
    }
}

fn row(token: &str, id: Uuid, state: &str, attempt: u64, seq: u64) -> Row {
    Row {
        id,
        token: Some(token.to_owned()),
        state: state.to_owned(),
        attempt,
        failures: 0,
        losses: 0,
        max_attempts: 2,
        seq,
        error_code: None,
        stdout: None,
    }
}

fn attempt(job_id: Uuid, attempt: u64, span: (i64, i64), outcome: &str) -> Attempt {
    Attempt {
        job_id,
        attempt,
        worker_id: Uuid::from_u128(9),
        started_at: at(span.0),
        finished_at: at(span.1),
        outcome: outcome.to_owned(),
    }
}

fn event(seq: u64, attempt: u64, kind: &str, body: Value) -> Event {
    Event {
        seq,
        kind: kind.to_owned(),
        attempt,
        body,
    }
}

fn sighting(token: &str, sandbox: u64, began: f64, seen: f64) -> Sighting {
    Sighting {
        token: token.to_owned(),
        sandbox,
        began,
        seen,
    }
}

fn plain(seq: u64, attempt: u64, kind: &str) -> Event {
    event(seq, attempt, kind, json!({}))
}

#[expect(clippy::too_many_lines, reason = "one history, told from its beginning to its end")]
fn good() -> History {
    let text = |seq, attempt, text: &str| event(seq, attempt, "stdout", json!({"text": text}));
    let gap = json!({"from_seq": 4, "to_seq": 10_003});
    let exec = vec![
        plain(1, 0, "queued"),
        plain(2, 1, "started"),
        text(3, 1, "begin 10.5\n"),
        event(10_004, 1, "resume_gap", gap),
        plain(10_005, 1, "attempt_reset"),
        plain(10_006, 1, "queued"),
        plain(10_007, 2, "started"),
        text(10_008, 2, "begin 30.5\nend 31.0\n"),
        plain(10_009, 2, "succeeded"),
    ];
    let mut seen = exec.clone();
    // What the follower saw before it was lost.
    seen.insert(3, text(4, 1, "tick 11.0\n"));
    let noop = vec![plain(1, 0, "queued"), plain(2, 1, "started"), plain(3, 1, "succeeded")];
    let fails = vec![
        plain(1, 0, "queued"),
        plain(2, 1, "started"),
        plain(3, 1, "retrying"),
        plain(4, 1, "queued"),
        plain(5, 2, "started"),
        plain(6, 2, "failed"),
    ];
    History {
        submissions: vec![
            submission("noop", NOOP),
            Submission {
                has_key: true,
                answer: Answer::Accepted(vec![EXEC, EXEC]),
                ..submission("exec", EXEC)
            },
            Submission {
                expects: Expects::Fails("nonzero_exit"),
                ..submission("fails", FAILS)
            },
        ],
        rows: vec![
            row("noop", NOOP, "succeeded", 1, 3),
            Row {
                losses: 1,
                stdout: Some("begin 30.5\nend 31.0\n".to_owned()),
                ..row("exec", EXEC, "succeeded", 2, 10_009)
            },
            Row {
                failures: 2,
                error_code: Some("nonzero_exit".to_owned()),
                ..row("fails", FAILS, "failed", 2, 6)
            },
        ],
        attempts: vec![
            attempt(NOOP, 1, (0, 1), "succeeded"),
            attempt(EXEC, 1, (10, 20), "lost"),
            attempt(EXEC, 2, (30, 32), "succeeded"),
            attempt(FAILS, 1, (40, 41), "retrying"),
            attempt(FAILS, 2, (42, 43), "failed"),
        ],
        logs: [(NOOP, noop), (EXEC, exec), (FAILS, fails)].into_iter().collect(),
        followed: vec![Followed {
            job: EXEC,
            events: seen,
        }],
        told: vec![Told {
            job: NOOP,
            state: "succeeded".to_owned(),
        }],
        sightings: vec![
            sighting("exec", 7, 10.4, 14.0),
            sighting("exec", 8, 30.4, 31.1),
            sighting("fails", 8, 40.1, 40.8),
        ],
        wipes: vec![at(12)],
        bad_answers: Vec::new(),
        left: Vec::new(),
    }
}

#[test]
fn a_good_history_is_accepted() {
    let found = check(&good());
    assert!(found.is_empty(), "{found:#?}");
}

/// The history with something changed breaks this promise.
fn refused(property: &str, change: impl FnOnce(&mut History)) {
    let mut history = good();
    change(&mut history);
    let found = check(&history);
    assert!(
        found.iter().any(|one| one.property == property),
        "{property}: {found:#?}"
    );
}

fn log(history: &mut History, job: Uuid) -> &mut Vec<Event> {
    history.logs.get_mut(&job).unwrap()
}

#[test]
fn an_accepted_job_that_is_not_there_is_found() {
    let property = "what was answered with 202 is kept";
    refused(property, |history| history.rows.retain(|row| row.id != NOOP));
    refused(property, |history| history.rows[0].token = Some("exec".to_owned()));
}

#[test]
fn a_job_that_nobody_asked_for_is_found() {
    refused("only what was asked for runs", |history| {
        history.rows.push(row("other", Uuid::from_u128(4), "succeeded", 1, 3));
    });
}

#[test]
fn two_jobs_for_one_submission_are_found() {
    let again = || row("exec", Uuid::from_u128(4), "cancelled", 0, 2);
    refused("one idempotency key is one job", |history| history.rows.push(again()));
    refused("one idempotency key is one job", |history| {
        history.submissions[1].answer = Answer::Accepted(vec![EXEC, NOOP]);
    });
    refused("a submission is one job", |history| {
        history.submissions[1].has_key = false;
        history.rows.push(again());
    });
}

#[test]
fn a_job_that_does_not_end_or_ends_twice_is_found() {
    let property = "every job ends in exactly one terminal row";
    refused(property, |history| history.rows[0].state = "running".to_owned());
    refused(property, |history| history.rows.push(history.rows[0].clone()));
}

#[test]
fn a_job_that_ends_in_another_way_is_found() {
    let property = "a job ends as it should";
    refused(property, |history| {
        history.rows[0].state = "failed".to_owned();
        history.rows[0].error_code = Some("internal".to_owned());
    });
    refused(property, |history| history.rows[0].state = "cancelled".to_owned());
    refused(property, |history| {
        history.rows[0].state = "failed".to_owned();
        history.rows[0].error_code = Some("poisoned".to_owned());
    });
    refused(property, |history| {
        history.rows[2].error_code = Some("sandbox_failed".to_owned());
        history.rows[2].max_attempts = 3;
    });
    refused(property, |history| {
        history.submissions[0].expects = Expects::Fails("timeout");
    });
}

#[test]
fn a_terminal_state_that_changes_is_found() {
    refused("terminal is terminal", |history| {
        history.told[0].state = "cancelled".to_owned();
    });
}

#[test]
fn attempts_that_are_not_counted_are_found() {
    let property = "every attempt is counted";
    refused(property, |history| history.attempts.retain(|one| one.outcome != "lost"));
    refused(property, |history| history.rows[1].losses = 0);
    refused(property, |history| history.rows[2].failures = 1);
}

#[test]
fn attempts_that_overlap_are_found() {
    let property = "one attempt of a job at a time";
    refused(property, |history| history.attempts[2].started_at = at(19));
    refused(property, |history| {
        log(history, EXEC)[2].body = json!({"text": "begin 10.5\ntick 30.6\n"});
    });
}

#[test]
fn two_attempts_that_commit_are_found() {
    let property = "one attempt of a job commits";
    refused(property, |history| history.attempts[3].outcome = "failed".to_owned());
    refused(property, |history| history.attempts[4].outcome = "succeeded".to_owned());
    refused(property, |history| {
        history.attempts[0].outcome = "interrupted".to_owned();
    });
}

/// The history with something changed keeps this promise.
fn accepted(property: &str, change: impl FnOnce(&mut History)) {
    let mut history = good();
    change(&mut history);
    let found = check(&history);
    assert!(
        found.iter().all(|one| one.property != property),
        "{property}: {found:#?}"
    );
}

#[test]
fn a_log_that_is_not_one_sequence_is_found() {
    let property = "an event log is one strictly increasing sequence to its one end";
    refused(property, |history| {
        history.logs.remove(&NOOP);
    });
    refused(property, |history| log(history, NOOP)[1].seq = 1);
    refused(property, |history| log(history, NOOP)[0].attempt = 2);
    refused(property, |history| log(history, NOOP)[1].kind = "failed".to_owned());
    refused(property, |history| {
        log(history, NOOP).pop();
    });
    refused(property, |history| {
        log(history, NOOP).remove(0);
    });
    refused(property, |history| history.rows[0].seq = 4);
}

#[test]
fn a_silent_hole_is_found() {
    let property = "every hole in an event log is announced and explained";
    refused(property, |history| {
        log(history, FAILS).remove(2);
    });
    // A jump where no worker was lost.
    refused(property, |history| {
        history.attempts[1].outcome = "interrupted".to_owned();
    });
    // A gap that does not name all that is missing.
    refused(property, |history| {
        log(history, EXEC)[3].body = json!({"from_seq": 5, "to_seq": 10_003});
    });
    // A gap although Redis lived.
    refused(property, |history| history.wipes.clear());
    refused(property, |history| history.wipes = vec![at(3)]);
    // It was claimed before, and its worker stood still.
    accepted(property, |history| history.wipes = vec![at(5)]);
    refused(property, |history| {
        let log = log(history, EXEC);
        log.remove(3);
        log[3].kind = "status".to_owned();
    });
}

#[test]
fn output_that_is_cut_is_found() {
    let property = "the log holds the output of each attempt";
    refused(property, |history| {
        history.rows[1].stdout = Some("begin 30.5\n".to_owned());
    });
    refused(property, |history| {
        log(history, EXEC)[7].body = json!({"text": "begin 30.5\n"});
        history.rows[1].stdout = Some("begin 30.5\n".to_owned());
    });
}

#[test]
fn a_follower_that_sees_something_else_is_found() {
    let property = "a follower sees the whole log, and nothing else";
    // Twice.
    refused(property, |history| {
        let again = history.followed[0].events[1].clone();
        history.followed[0].events.insert(2, again);
    });
    // Something that was lost without an announcement.
    refused(property, |history| {
        history.followed[0].events.insert(1, plain(2, 1, "status"));
    });
    refused(property, |history| history.followed[0].events[3].seq = 20_000);
    // Less than there is.
    refused(property, |history| {
        history.followed[0].events.remove(2);
    });
}

#[test]
fn two_sandboxes_of_one_job_are_found() {
    let property = "at most one sandbox runs for a job";
    refused(property, |history| history.sightings[0].seen = 30.6);
    refused(property, |history| {
        history.sightings.push(sighting("exec", 9, 31.5, 31.6));
    });
}

#[test]
fn a_limit_that_is_exceeded_is_found() {
    let property = "concurrency limits hold";
    refused(property, |history| {
        history.attempts[3].started_at = at(31);
    });
    // It was given back without having run.
    accepted(property, |history| {
        history.attempts[3].started_at = at(31);
        history.attempts[3].outcome = "interrupted".to_owned();
        history.sightings.pop();
    });
    // The lost attempt's program was still there when the next job of its key began.
    refused(property, |history| {
        history.sightings[2].began = 13.0;
    });
}

#[test]
fn what_is_left_and_bad_answers_are_found() {
    refused("nothing leaks", |history| history.left.push("a container".to_owned()));
    refused("answers are clear", |history| {
        history.bad_answers.push("500".to_owned());
    });
}
