//! What happened, as it was seen from outside, and whether it may have happened. Pure: it reads nothing.
//!
//! Every promise is a rule: a function from the whole history to the jobs for which the promise was broken. The tests
//! beside it show for each rule a history that it refuses.

mod attempts;
mod logs;
mod overlap;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// Everything that is known when the storm is over and the system has come to rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) submissions: Vec<Submission>,
    pub(crate) rows: Vec<Row>,
    pub(crate) attempts: Vec<Attempt>,
    /// The event logs as the API tells them in the end.
    pub(crate) logs: HashMap<Uuid, Vec<Event>>,
    /// What clients saw who followed a job all the while.
    pub(crate) followed: Vec<Followed>,
    /// States that clients were told on the way.
    pub(crate) told: Vec<Told>,
    /// What the kernel showed of the jobs' programs.
    pub(crate) sightings: Vec<Sighting>,
    /// When Redis lost what it held.
    pub(crate) wipes: Vec<DateTime<Utc>>,
    /// Answers that no client should get, whatever goes wrong behind.
    pub(crate) bad_answers: Vec<String>,
    /// What is there in the end and should not be.
    pub(crate) left: Vec<String>,
}

/// One job that a client asked for.
#[derive(Debug, Clone)]
pub(crate) struct Submission {
    /// Which it is: in the job's metadata, and in the command line of its program.
    pub(crate) token: String,
    pub(crate) tenant: String,
    pub(crate) answer: Answer,
    pub(crate) has_key: bool,
    pub(crate) expects: Expects,
    pub(crate) is_sandboxed: bool,
    /// The concurrency key and how many may run.
    pub(crate) limit: Option<(String, usize)>,
    pub(crate) cancel_asked: bool,
}

/// What the client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 202, with this id; more than once when the submission was repeated under its key.
    Accepted(Vec<Uuid>),
    /// Nothing, or that a dependency is away: it may have been committed.
    Unknown,
}

/// How the job should end when nobody cancels it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expects {
    Succeeds,
    Fails(&'static str),
    /// Its own dice decide: it succeeds, or fails with this code.
    Either(&'static str),
}

/// A row of `jobs`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    pub(crate) token: Option<String>,
    pub(crate) state: String,
    pub(crate) attempt: u64,
    pub(crate) failures: u64,
    pub(crate) losses: u64,
    pub(crate) max_attempts: u64,
    pub(crate) seq: u64,
    pub(crate) error_code: Option<String>,
    pub(crate) stdout: Option<String>,
}

/// A row of `attempts`.
#[derive(Debug, Clone, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of the columns")]
pub(crate) struct Attempt {
    pub(crate) job_id: Uuid,
    pub(crate) attempt: u64,
    pub(crate) worker_id: Uuid,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) finished_at: DateTime<Utc>,
    pub(crate) outcome: String,
}

/// One event of a log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) kind: String,
    pub(crate) attempt: u64,
    /// All of it, but for its type.
    pub(crate) body: Value,
}

/// What one follower saw, over all its connections.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    pub(crate) job: Uuid,
    pub(crate) events: Vec<Event>,
}

/// A job's state as a client was told it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) job: Uuid,
    pub(crate) state: String,
}

/// A process of a job's program, seen in the kernel's list. Times are seconds of the machine's own clock,
/// which nobody sets.
#[derive(Debug, Clone)]
pub(crate) struct Sighting {
    pub(crate) token: String,
    /// The sandbox, by its namespace of processes. The kernel uses numbers again, but never for two at a time.
    pub(crate) sandbox: u64,
    /// Since when it was certainly there.
    pub(crate) began: f64,
    /// Until when.
    pub(crate) seen: f64,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) job: Option<Uuid>,
    pub(crate) told: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.job {
            Some(job) => write!(f, "{} is broken by job {job}: {}", self.property, self.told),
            None => write!(f, "{} is broken: {}", self.property, self.told),
        }
    }
}

fn violation(property: &'static str, job: impl Into<Option<Uuid>>, told: impl Into<String>) -> Violation {
    Violation {
        property,
        job: job.into(),
        told: told.into(),
    }
}

/// A history, arranged by job.
struct Facts<'a> {
    history: &'a History,
    by_token: HashMap<&'a str, &'a Submission>,
    rows: HashMap<Uuid, &'a Row>,
    /// In order of their numbers.
    attempts: HashMap<Uuid, Vec<&'a Attempt>>,
}

impl<'a> Facts<'a> {
    fn new(history: &'a History) -> Self {
        let mut attempts: HashMap<Uuid, Vec<&Attempt>> = HashMap::new();
        for attempt in &history.attempts {
            attempts.entry(attempt.job_id).or_default().push(attempt);
        }
        for all in attempts.values_mut() {
            all.sort_by_key(|attempt| attempt.attempt);
        }
        Self {
            history,
            by_token: history
                .submissions
                .iter()
                .map(|one| (one.token.as_str(), one))
                .collect(),
            rows: history.rows.iter().map(|row| (row.id, row)).collect(),
            attempts,
        }
    }

    fn attempts_of(&self, job: Uuid) -> &[&'a Attempt] {
        self.attempts.get(&job).map_or(&[], Vec::as_slice)
    }

    fn submission_of(&self, row: &Row) -> Option<&'a Submission> {
        self.by_token.get(row.token.as_deref()?).copied()
    }
}

/// Every broken promise.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let facts = Facts::new(history);
    let rules: [fn(&Facts<'_>) -> Vec<Violation>; 14] = [
        rows::accepted_is_there,
        rows::nothing_else_is_there,
        rows::one_key_one_job,
        rows::ends_once,
        rows::ends_as_it_should,
        rows::terminal_is_terminal,
        attempts::each_is_counted,
        attempts::one_at_a_time,
        attempts::one_commits,
        logs::is_one_sequence,
        logs::holes_are_announced,
        logs::output_is_whole,
        logs::followers_see_it_all,
        overlap::one_sandbox_a_job,
    ];
    let mut found: Vec<Violation> = rules.iter().flat_map(|rule| rule(&facts)).collect();
    found.extend(overlap::limits_hold(&facts));
    found.extend(
        history
            .bad_answers
            .iter()
            .map(|told| violation("answers are clear", None, told)),
    );
    found.extend(history.left.iter().map(|told| violation("nothing leaks", None, told)));
    found
}

fn is_terminal(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled")
}
