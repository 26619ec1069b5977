//! Attempts: numbered without a hole, counted rightly, one after the other, and one of them commits.

use super::{Facts, Violation, is_terminal, violation};

/// The fence: as many rows as the job counts, with the numbers 1, 2, 3 …, and the counters that follow from them.
pub(super) fn each_is_counted(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for row in facts.history.rows.iter().filter(|row| is_terminal(&row.state)) {
        let attempts = facts.attempts_of(row.id);
        let numbers = attempts.iter().map(|attempt| attempt.attempt);
        let with = |outcomes: &[&str]| {
            let counted = attempts
                .iter()
                .filter(|attempt| outcomes.contains(&attempt.outcome.as_str()));
            u64::try_from(counted.count()).unwrap_or(u64::MAX)
        };
        let is_right = numbers.eq(1..=row.attempt)
            && with(&["failed", "retrying"]) == row.failures
            && with(&["lost"]) == row.losses;
        if !is_right {
            found.push(violation(
                "every attempt is counted",
                row.id,
                format!("{row:?} of {attempts:#?}"),
            ));
        }
    }
    found
}

pub(super) fn one_at_a_time(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (job, attempts) in &facts.attempts {
        for pair in attempts.windows(2) {
            if pair[1].started_at < pair[0].finished_at {
                let told = format!("{:?} began before the end of {:?}", pair[1], pair[0]);
                found.push(violation("one attempt of a job at a time", *job, told));
            }
        }
    }
    found
}

/// A terminal outcome is the last attempt's, and the row's.
pub(super) fn one_commits(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for row in facts.history.rows.iter().filter(|row| is_terminal(&row.state)) {
        let attempts = facts.attempts_of(row.id);
        let ended: Vec<_> = attempts
            .iter()
            .filter(|attempt| is_terminal(&attempt.outcome))
            .collect();
        let is_right = match ended.as_slice() {
            // Cancelled between two attempts, or ended by the loss of its worker.
            [] => row.state == "cancelled" || row.losses > 0,
            [one] => one.attempt == row.attempt && one.outcome == row.state,
            _ => false,
        };
        if !is_right {
            found.push(violation(
                "one attempt of a job commits",
                row.id,
                format!("{row:?} of {attempts:#?}"),
            ));
        }
    }
    found
}
