//! What ran at the same time, by the kernel's word and by that of the attempts.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use super::{Facts, Sighting, Violation, violation};

/// The kernel counts time in hundredths of a second.
const TICK: f64 = 0.02;

pub(super) fn one_sandbox_a_job(facts: &Facts<'_>) -> Vec<Violation> {
    let mut by_token: HashMap<&str, Vec<&Sighting>> = HashMap::new();
    for sighting in &facts.history.sightings {
        by_token.entry(&sighting.token).or_default().push(sighting);
    }
    let mut found = Vec::new();
    let property = "at most one sandbox runs for a job";
    for (token, seen) in by_token {
        let row = facts
            .history
            .rows
            .iter()
            .find(|row| row.token.as_deref() == Some(token));
        for (index, one) in seen.iter().enumerate() {
            let overlaps = |other: &&&Sighting| {
                other.sandbox != one.sandbox && other.seen > one.began + TICK && one.seen > other.began + TICK
            };
            if let Some(other) = seen[index + 1..].iter().find(overlaps) {
                let told = format!("{one:?} and {other:?} were there at once");
                found.push(violation(property, row.map(|row| row.id), told));
            }
        }
        let sandboxes: BTreeSet<u64> = seen.iter().map(|one| one.sandbox).collect();
        if let Some(row) = row
            && u64::try_from(sandboxes.len()).unwrap_or(u64::MAX) > row.attempt
        {
            let told = format!("{} sandboxes in {} attempts: {seen:?}", sandboxes.len(), row.attempt);
            found.push(violation(property, row.id, told));
        }
    }
    found
}

/// Spans of time by tenant and key, with the key's limit.
type Groups<'a> = HashMap<(&'a str, &'a str), (usize, Vec<(f64, f64)>)>;

#[expect(clippy::cast_precision_loss, reason = "microseconds of this century fit")]
fn seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_micros() as f64 / 1e6
}

/// Never more of a key at once than its limit. A lost attempt's row ends when somebody took it over, long after its end; one
/// that was given back may have begun when its claim was on its way, and never run, also where somebody cancelled it then. Of
/// those the kernel's sightings count.
pub(super) fn limits_hold(facts: &Facts<'_>) -> Vec<Violation> {
    let mut rows: Groups<'_> = HashMap::new();
    let mut seen: Groups<'_> = HashMap::new();
    for row in &facts.history.rows {
        let Some(submission) = facts.submission_of(row) else {
            continue;
        };
        let Some((key, limit)) = &submission.limit else {
            continue;
        };
        let kept = facts
            .attempts_of(row.id)
            .iter()
            .filter(|attempt| !matches!(attempt.outcome.as_str(), "lost" | "interrupted" | "cancelled"));
        let spans = kept.map(|attempt| (seconds(attempt.started_at), seconds(attempt.finished_at)));
        let at = (submission.tenant.as_str(), key.as_str());
        let group = rows.entry(at).or_insert_with(|| (*limit, Vec::new()));
        group.1.extend(spans);
        let sightings = facts
            .history
            .sightings
            .iter()
            .filter(|one| one.token == submission.token);
        let group = seen.entry(at).or_insert_with(|| (*limit, Vec::new()));
        group
            .1
            .extend(joined(sightings.map(|one| (one.began + TICK, one.seen)).collect()));
    }
    let mut found = Vec::new();
    for (by, groups) in [("attempts", rows), ("sandboxes", seen)] {
        for ((tenant, key), (limit, spans)) in groups {
            let most = most_at_once(&spans);
            if most > limit {
                let told = format!("{most} {by} of tenant {tenant}'s key {key} at once, {limit} allowed");
                found.push(violation("concurrency limits hold", None, told));
            }
        }
    }
    found
}

/// A job's program forks, and is one program all the same.
fn joined(mut spans: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64)> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.0 <= last.1 => last.1 = last.1.max(span.1),
            _ => joined.push(span),
        }
    }
    joined
}

fn most_at_once(spans: &[(f64, f64)]) -> usize {
    let begins = spans.iter().map(|(from, _)| (*from, 1_i64));
    let ends = spans.iter().map(|(_, to)| (*to, -1));
    let mut turns: Vec<(f64, i64)> = begins.chain(ends).collect();
    // At the same moment the end comes first.
    turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0, 0);
    for (_, change) in turns {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or(0)
}
