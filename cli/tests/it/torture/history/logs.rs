//! Event logs: one strictly increasing sequence, whose every hole is announced, explained, and seen alike by everybody.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::{Event, Facts, Row, Violation, is_terminal, violation};

const HOLES: &str = "every hole in an event log is announced and explained";
const FOLLOWERS: &str = "a follower sees the whole log, and nothing else";

/// `leases.ttl` unless it is set.
const LEASE: TimeDelta = TimeDelta::seconds(6);

pub(super) fn is_one_sequence(facts: &Facts<'_>) -> Vec<Violation> {
    let property = "an event log is one strictly increasing sequence to its one end";
    let mut found = Vec::new();
    for row in &facts.history.rows {
        let Some(log) = facts.history.logs.get(&row.id) else {
            found.push(violation(property, row.id, "there is no log"));
            continue;
        };
        let grows = log
            .windows(2)
            .all(|pair| pair[0].seq < pair[1].seq && pair[0].attempt <= pair[1].attempt);
        let ends = log.iter().filter(|event| is_terminal(&event.kind)).count();
        let last = log.last();
        let is_right = grows
            && log.first().map(|event| event.seq) == Some(1)
            && ends == 1
            && last.is_some_and(|event| event.kind == row.state && event.seq == row.seq);
        if !is_right {
            found.push(violation(property, row.id, format!("{row:?}\n{}", listed(log))));
        }
    }
    found
}

pub(super) fn holes_are_announced(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for row in &facts.history.rows {
        let log = facts.history.logs.get(&row.id).map_or(&[][..], Vec::as_slice);
        for pair in log.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            let why = match after.kind.as_str() {
                "resume_gap" => gap(facts, row, before, after),
                _ if after.seq == before.seq + 1 => None,
                "attempt_reset" => lost(facts, row, after),
                "status" if after.body["phase"] == "worker_lost" => lost(facts, row, after),
                _ => Some("a silent hole"),
            };
            if let Some(why) = why {
                let told = format!("{why} between {} and {}\n{}", before.seq, after.seq, listed(log));
                found.push(violation(HOLES, row.id, told));
            }
        }
    }
    found
}

/// A gap names exactly what is missing, and is possible only where Redis lost what it held during a lost attempt: from its
/// claim on, of which its row does not tell, but which is no more than a lease older than its start.
fn gap(facts: &Facts<'_>, row: &Row, before: &Event, after: &Event) -> Option<&'static str> {
    let range = (after.body["from_seq"].as_u64(), after.body["to_seq"].as_u64());
    if range != (Some(before.seq + 1), after.seq.checked_sub(1)) {
        return Some("a gap that names another range");
    }
    let lost = facts
        .attempts_of(row.id)
        .iter()
        .find(|one| one.attempt == after.attempt && one.outcome == "lost");
    let Some(lost) = lost else {
        return Some("a gap without a lost worker");
    };
    let is_wiped = facts
        .history
        .wipes
        .iter()
        .any(|at| (lost.started_at - LEASE..=lost.finished_at).contains(at));
    (!is_wiped).then_some("a gap although Redis kept everything")
}

fn lost(facts: &Facts<'_>, row: &Row, after: &Event) -> Option<&'static str> {
    let attempts = facts.attempts_of(row.id);
    let is_lost = attempts
        .iter()
        .any(|one| one.attempt == after.attempt && one.outcome == "lost");
    (!is_lost).then_some("a jump without a lost worker")
}

/// What the last attempt printed is its result, from its first line to its last; and by the clock that its program read,
/// no attempt began before the one before it had said its last.
pub(super) fn output_is_whole(facts: &Facts<'_>) -> Vec<Violation> {
    let property = "the log holds the output of each attempt";
    let mut found = Vec::new();
    for row in &facts.history.rows {
        let Some(submission) = facts.submission_of(row).filter(|one| one.is_sandboxed) else {
            continue;
        };
        let log = facts.history.logs.get(&row.id).map_or(&[][..], Vec::as_slice);
        let mut printed: BTreeMap<u64, String> = BTreeMap::new();
        for event in log.iter().filter(|event| event.kind == "stdout") {
            let text = event.body["text"].as_str().unwrap_or_default();
            printed.entry(event.attempt).or_default().push_str(text);
        }
        let last = printed.get(&row.attempt).map_or("", String::as_str);
        if row.state == "succeeded" && (row.stdout.as_deref() != Some(last) || !is_complete(last)) {
            let told = format!("{submission:?} printed {last:?}, its result is {:?}", row.stdout);
            found.push(violation(property, row.id, told));
        }
        let spans: Vec<(f64, f64)> = printed.values().filter_map(|text| span(text)).collect();
        if spans.windows(2).any(|pair| pair[1].0 < pair[0].1) {
            let told = format!("its programs ran at {spans:?} s of the machine's clock");
            found.push(violation("one attempt of a job at a time", row.id, told));
        }
    }
    found
}

/// The programs print `begin`, lines with the machine's clock, and `end`.
fn is_complete(text: &str) -> bool {
    text.starts_with("begin ") && text.lines().last().is_some_and(|line| line.starts_with("end "))
}

fn span(text: &str) -> Option<(f64, f64)> {
    let mut times = text
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.parse::<f64>().ok());
    let first = times.next()?;
    Some((first, times.next_back().unwrap_or(first)))
}

/// What was seen is in the log, or in a gap that it announces; and all of the log was seen.
pub(super) fn followers_see_it_all(facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for followed in &facts.history.followed {
        let Some(log) = facts.history.logs.get(&followed.job) else {
            continue;
        };
        let by_seq: BTreeMap<u64, &Event> = log.iter().map(|event| (event.seq, event)).collect();
        let gaps: Vec<(u64, u64)> = log
            .iter()
            .filter(|event| event.kind == "resume_gap")
            .filter_map(|gap| Some((gap.body["from_seq"].as_u64()?, gap.body["to_seq"].as_u64()?)))
            .collect();
        let is_in_gap = |seq: u64| gaps.iter().any(|(from, to)| (*from..=*to).contains(&seq));
        let mut tell = |told: String| found.push(violation(FOLLOWERS, followed.job, told));
        if followed.events.windows(2).any(|pair| pair[0].seq >= pair[1].seq) {
            tell(format!("not in order, or twice:\n{}", listed(&followed.events)));
        }
        for event in &followed.events {
            match by_seq.get(&event.seq) {
                Some(kept) if *kept == event => {}
                Some(kept) => tell(format!("saw {event:?}, the log has {kept:?}")),
                None if is_in_gap(event.seq) => {}
                None => tell(format!("saw {event:?}, which is lost without a word\n{}", listed(log))),
            }
        }
        let missed: Vec<u64> = by_seq
            .keys()
            .copied()
            .filter(|seq| followed.events.iter().all(|event| event.seq != *seq))
            .collect();
        if !missed.is_empty() {
            let seen: Vec<u64> = followed.events.iter().map(|event| event.seq).collect();
            tell(format!("never saw {missed:?}, but {seen:?}\n{}", listed(log)));
        }
    }
    found
}

fn listed(log: &[Event]) -> String {
    let lines = log
        .iter()
        .map(|event| format!("  {} {} of {}: {}", event.seq, event.kind, event.attempt, event.body));
    lines.collect::<Vec<_>>().join("\n")
}
