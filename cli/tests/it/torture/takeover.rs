//! How long it took until the jobs of a killed worker ran elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::faults::Record;
use super::history::History;
use super::plan::{is_worker, name_of};
use super::rig::Rig;

/// One line with the number of kills and the distribution of the times.
pub(super) fn report(rig: &Rig, record: &Record, history: &History) -> String {
    let times = times(rig, record, history);
    let kills = record.kills.iter().filter(|(process, _)| is_worker(*process)).count();
    if times.is_empty() {
        return format!("torture: {kills} workers killed, none of them under a job");
    }
    let at = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100);
        times[index.clamp(1, times.len()) - 1].as_secs_f64()
    };
    format!(
        "torture: {kills} workers killed under {} jobs, which ran elsewhere after {:.1} s (p50), {:.1} s (p99), {:.1} s (most)",
        times.len(),
        at(50),
        at(99),
        at(100)
    )
}

/// From each kill to the next attempt of each job that the worker held, in order of length.
fn times(rig: &Rig, record: &Record, history: &History) -> Vec<Duration> {
    let workers: HashMap<Uuid, String> = rig
        .sql("select concat_ws(' ', id, name) from workers")
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, name)| (id.parse().unwrap(), name.to_owned()))
        .collect();
    let mut times = Vec::new();
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
        if let Some(taken) = next.and_then(|next| since(killed, next.started_at)) {
            times.push(taken);
        }
    }
    times.sort_unstable();
    times
}

fn since(from: DateTime<Utc>, to: DateTime<Utc>) -> Option<Duration> {
    (to - from).to_std().ok()
}
