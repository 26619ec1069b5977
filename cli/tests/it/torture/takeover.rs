//! How long it took until the jobs of a killed worker ran elsewhere. In a storm of all faults that includes whatever else held them
//! up: a store that was away, other workers that stood still, or a queue that one worker was left to serve.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::job::decision::ALONE_AFTER;
use uuid::Uuid;

use super::faults::Record;
use super::history::{Attempt, History};
use super::plan::{is_worker, name_of};
use super::rig::Rig;

/// The slowest that are told one by one, to be compared with the faults of their time.
const TOLD: usize = 3;

/// A job of a worker that was killed.
struct Takeover {
    worker: String,
    killed_at: DateTime<Utc>,
    /// When its worker was found to be gone.
    lost_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    /// It had been lost before, so it waited for a worker that holds nothing else.
    is_alone: bool,
}

impl Takeover {
    fn took(&self) -> Duration {
        since(self.killed_at, self.started_at)
    }
}

/// The number of kills, the distribution of the times, also of those that did not wait for a worker of their own, and the
/// slowest of them by the clock of the storm.
pub(super) fn report(rig: &Rig, record: &Record, history: &History) -> String {
    let jobs = takeovers(rig, record, history);
    let kills = record.kills.iter().filter(|(process, _)| is_worker(*process)).count();
    if jobs.is_empty() {
        return format!("torture: {kills} workers killed, none of them under a job");
    }
    let beside_others: Vec<&Takeover> = jobs.iter().filter(|job| !job.is_alone).collect();
    let mut told = format!(
        "torture: {kills} workers killed under {} jobs, which ran elsewhere after {}",
        jobs.len(),
        spread(&jobs.iter().collect::<Vec<_>>())
    );
    let _written = write!(
        told,
        "\ntorture: {} of them beside others, after {}; the rest had been lost twice and ran alone",
        beside_others.len(),
        spread(&beside_others)
    );
    let began_at = record.began_at.expect("a storm that killed began");
    for slow in jobs.iter().rev().take(TOLD) {
        let clock = |at| since(began_at, at).as_secs_f64();
        let _written = write!(
            told,
            "\n{:>6.1} s  {} killed; its job found lost at {:.1} s, elsewhere{} at {:.1} s",
            clock(slow.killed_at),
            slow.worker,
            clock(slow.lost_at),
            if slow.is_alone { ", alone," } else { "" },
            clock(slow.started_at)
        );
    }
    told
}

/// Of times in ascending order.
fn spread(jobs: &[&Takeover]) -> String {
    let at = |percent: usize| {
        let index = (jobs.len() * percent).div_ceil(100).max(1) - 1;
        jobs.get(index).map_or(0.0, |job| job.took().as_secs_f64())
    };
    format!("{:.1} s (p50), {:.1} s (p99), {:.1} s (most)", at(50), at(99), at(100))
}

/// Each job that a killed worker held and that had another attempt, the slowest last.
fn takeovers(rig: &Rig, record: &Record, history: &History) -> Vec<Takeover> {
    let workers: HashMap<Uuid, String> = rig
        .sql("select concat_ws(' ', id, name) from workers")
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, name)| (id.parse().unwrap(), name.to_owned()))
        .collect();
    let mut takeovers = Vec::new();
    for lost in history.attempts.iter().filter(|one| one.outcome == "lost") {
        let name = workers.get(&lost.worker_id);
        let is_its = |process: usize| Some(name_of(process)).as_ref() == name;
        let kills = record
            .kills
            .iter()
            .filter(|(process, at)| is_its(*process) && *at >= lost.started_at);
        let Some(killed) = kills.map(|(_, at)| *at).min().filter(|at| *at <= lost.finished_at) else {
            continue;
        };
        let next = history
            .attempts
            .iter()
            .find(|one| one.job_id == lost.job_id && one.attempt == lost.attempt + 1);
        // One that was cancelled meanwhile, or poisoned, runs nowhere.
        if let Some((next, worker)) = next.zip(name) {
            takeovers.push(Takeover {
                worker: worker.clone(),
                killed_at: killed,
                lost_at: lost.finished_at,
                started_at: next.started_at,
                is_alone: losses(history, lost) >= ALONE_AFTER as usize,
            });
        }
    }
    takeovers.sort_unstable_by_key(Takeover::took);
    takeovers
}

/// How often a job had been lost when it was lost this time.
fn losses(history: &History, lost: &Attempt) -> usize {
    let until = |one: &&Attempt| one.job_id == lost.job_id && one.attempt <= lost.attempt;
    let attempts = history.attempts.iter().filter(until);
    attempts.filter(|one| one.outcome == "lost").count()
}

fn since(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
