//! Rows: what was accepted is there once, and ended once, as it should.

use std::collections::{BTreeSet, HashMap};

use super::{Answer, Expects, Facts, Row, Violation, is_terminal, violation};

const THERE: &str = "what was answered with 202 is kept";

pub(super) fn accepted_is_there(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for submission in &facts.history.submissions {
        let Answer::Accepted(ids) = &submission.answer else {
            continue;
        };
        for id in ids {
            match facts.rows.get(id) {
                None => found.push(violation(THERE, *id, format!("{submission:?} has no row"))),
                Some(row) if row.token.as_deref() != Some(&submission.token) => {
                    found.push(violation(THERE, *id, format!("{submission:?} became {row:?}")));
                }
                Some(_) => {}
            }
        }
    }
    found
}

pub(super) fn nothing_else_is_there(facts: &Facts<'_>) -> Vec<Violation> {
    let unasked = facts
        .history
        .rows
        .iter()
        .filter(|row| facts.submission_of(row).is_none());
    unasked
        .map(|row| violation("only what was asked for runs", row.id, format!("{row:?}")))
        .collect()
}

/// A submission is one row at most; under an idempotency key every answer names it.
pub(super) fn one_key_one_job(facts: &Facts<'_>) -> Vec<Violation> {
    let mut rows: HashMap<&str, Vec<&Row>> = HashMap::new();
    for row in &facts.history.rows {
        rows.entry(row.token.as_deref().unwrap_or_default())
            .or_default()
            .push(row);
    }
    let mut found = Vec::new();
    for submission in &facts.history.submissions {
        let property = if submission.has_key {
            "one idempotency key is one job"
        } else {
            "a submission is one job"
        };
        let made = rows.get(submission.token.as_str()).map_or(0, Vec::len);
        let answered: BTreeSet<_> = match &submission.answer {
            Answer::Accepted(ids) => ids.iter().collect(),
            Answer::Unknown => BTreeSet::new(),
        };
        if made > 1 || answered.len() > 1 {
            let told = format!("{made} rows, answered as {answered:?}: {submission:?}");
            found.push(violation(property, answered.first().map(|id| **id), told));
        }
    }
    found
}

pub(super) fn ends_once(facts: &Facts<'_>) -> Vec<Violation> {
    let property = "every job ends in exactly one terminal row";
    let open = facts.history.rows.iter().filter(|row| !is_terminal(&row.state));
    let mut found: Vec<Violation> = open
        .map(|row| violation(property, row.id, format!("{row:?}")))
        .collect();
    let mut seen = BTreeSet::new();
    let twice = facts.history.rows.iter().filter(|row| !seen.insert(row.id));
    found.extend(twice.map(|row| violation(property, row.id, "two rows")));
    found
}

/// Faults of the machinery are never the job's own: it ends as its program and its submitter say.
pub(super) fn ends_as_it_should(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for row in facts.history.rows.iter().filter(|row| is_terminal(&row.state)) {
        let Some(submission) = facts.submission_of(row) else {
            continue;
        };
        let code = row.error_code.as_deref().unwrap_or_default();
        let is_right = match row.state.as_str() {
            "cancelled" => submission.cancel_asked,
            "succeeded" => !matches!(submission.expects, Expects::Fails(_)),
            // The third worker that dies under it ends it, and a sandbox that dies as often as it may be tried.
            _ if code == "poisoned" => row.losses >= 3,
            _ if code == "sandbox_failed" => submission.is_sandboxed && row.failures >= row.max_attempts,
            _ => matches!(submission.expects, Expects::Fails(wanted) | Expects::Either(wanted) if wanted == code),
        };
        if !is_right {
            let told = format!("{row:?} of {submission:?}");
            found.push(violation("a job ends as it should", row.id, told));
        }
    }
    found
}

pub(super) fn terminal_is_terminal(facts: &Facts<'_>) -> Vec<Violation> {
    let ended = facts.history.told.iter().filter(|told| is_terminal(&told.state));
    let changed = ended.filter(|told| facts.rows.get(&told.job).is_none_or(|row| row.state != told.state));
    changed
        .map(|told| {
            let row = facts.rows.get(&told.job);
            violation(
                "terminal is terminal",
                told.job,
                format!("was told as {}, is {row:?}", told.state),
            )
        })
        .collect()
}
