//! The storm: real processes at work while whatever can go wrong does, and proof afterwards that every promise was kept.
//!
//! | part | does |
//! |---|---|
//! | [`plan`] | the faults, from a seed |
//! | [`rig`], [`faults`] | the processes, their wires and servers; killing, freezing, wiping, cutting them |
//! | [`client`], [`work`], [`follow`] | submissions, cancels, questions, live streams, all the while |
//! | [`witness`] | what the kernel shows of the jobs' programs |
//! | [`collect`] | rows, logs and leftovers when it is over |
//! | [`history`] | the rules, pure |
//! | [`frozen`] | a storm of one fault: a worker stands still for longer than its leases |
//! | [`backlog`] | a storm of one fault: Redis is wiped under a long backlog |
//!
//! `make torture SEED=… SECONDS=…` repeats a storm: the same faults at the same times. What they meet depends on the
//! machine, so a violation may need more than one try.

mod backlog;
mod client;
mod collect;
mod faults;
mod follow;
mod frozen;
mod history;
mod plan;
mod rig;
mod takeover;
mod witness;
mod work;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cluster::optional;
use client::{CLIENTS, Clients};
use history::{History, Violation};
use plan::Kinds;
use rig::Rig;
use witness::Witness;

/// What every run of the tests repeats.
const SEED: u64 = 20_261_121;

/// How long the storm of every run of the tests rages.
const LENGTH: Duration = Duration::from_secs(45);

/// How long jobs may take to end after it.
const DRAIN: Duration = Duration::from_mins(2);

fn now() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

#[expect(clippy::print_stderr, reason = "the progress of a long test")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn number(name: &str) -> Option<u64> {
    let text = optional(name).filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_faults_breaks_no_promise() {
    let seed = number("HOTHOUSE_TORTURE_SEED").unwrap_or(SEED);
    let length = number("HOTHOUSE_TORTURE_SECONDS").map_or(LENGTH, Duration::from_secs);
    let (kinds, faults) = match optional("HOTHOUSE_TORTURE_FAULTS").as_deref() {
        None | Some("" | "all") => (Kinds::All, ""),
        Some("kills") => (Kinds::Kills, " FAULTS=kills"),
        Some(other) => panic!("HOTHOUSE_TORTURE_FAULTS is all or kills, not {other}"),
    };
    say(&format!(
        "torture: seed {seed}, {} s; again with: make torture SEED={seed} SECONDS={}{faults}",
        length.as_secs(),
        length.as_secs()
    ));
    let rig = Arc::new(Rig::start().await);
    say(&format!("torture: logs in {}", rig.folder.display()));

    let history = rage(&rig, seed, length, kinds).await;
    let violations = history::check(&history);
    if violations.is_empty() {
        drop(std::fs::remove_dir_all(&rig.folder));
        return;
    }
    for violation in &violations {
        say(&told(violation, &history));
    }
    panic!(
        "seed {seed}: {} broken promises; logs in {}",
        violations.len(),
        rig.folder.display()
    );
}

/// A violation with all that is known of its job.
fn told(violation: &Violation, history: &History) -> String {
    let Some(job) = violation.job else {
        return violation.to_string();
    };
    let row = history.rows.iter().find(|row| row.id == job);
    let token = row.and_then(|row| row.token.as_deref()).unwrap_or_default();
    let mut lines = vec![violation.to_string(), format!("  {row:?}")];
    let submission = history.submissions.iter().filter(|one| one.token == token);
    lines.extend(submission.map(|one| format!("  {one:?}")));
    let attempts = history.attempts.iter().filter(|one| one.job_id == job);
    lines.extend(attempts.map(|one| format!("  {one:?}")));
    let sightings = history.sightings.iter().filter(|one| one.token == token);
    lines.extend(sightings.map(|one| format!("  {one:?}")));
    lines.join("\n")
}

/// Raises the storm and collects what it left.
async fn rage(rig: &Arc<Rig>, seed: u64, length: Duration, kinds: Kinds) -> History {
    // The command lines of two storms on one machine must differ.
    let prefix = format!("torture-{}-", std::process::id());
    let (follow, jobs) = mpsc::channel(CLIENTS * 16);
    let clients = Arc::new(Clients::new(rig, prefix.clone(), follow).await);
    let witness = Witness::start(prefix.clone());
    let mut tasks = JoinSet::new();
    for index in 0..CLIENTS {
        let seed = seed.wrapping_mul(31).wrapping_add(u64::try_from(index).unwrap());
        tasks.spawn(Arc::clone(&clients).run(seed));
    }
    let mut followers = JoinSet::new();
    followers.spawn(follow::run(Arc::clone(&clients), jobs));
    let begun = Instant::now();
    let record = faults::storm(rig, plan::plan(seed, length, kinds)).await;
    tokio::time::sleep(length.saturating_sub(begun.elapsed())).await;
    clients.stop.cancel();
    say(&format!("torture: the storm of {} faults is over", record.count));

    let calm = Instant::now();
    collect::ready(rig).await;
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let mut left = collect::drain(rig, DRAIN).await;
    say(&format!(
        "torture: drained {:.1} s after the storm",
        calm.elapsed().as_secs_f64()
    ));
    let followed = followers.join_next().await.unwrap().unwrap();
    left.extend(collect::left(rig, &prefix).await);
    let (rows, attempts) = (collect::rows(rig), collect::attempts(rig));
    let logs = collect::logs(rig, &rows).await;
    left.extend(rig.stop().await);
    left.extend(collect::left_behind(rig).await);
    left.extend(collect::cries(rig));
    let journal = std::mem::take(&mut *clients.journal.lock().unwrap_or_else(PoisonError::into_inner));
    let history = History {
        submissions: journal.submissions,
        rows,
        attempts,
        logs,
        followed,
        told: journal.told,
        sightings: witness.sightings(),
        wipes: record.wipes.clone(),
        bad_answers: journal.bad_answers,
        left,
    };
    say(&summary(&history));
    say(&takeover::report(rig, &record, &history));
    history
}

fn summary(history: &History) -> String {
    let ended = |state: &str| history.rows.iter().filter(|row| row.state == state).count();
    let lost: u64 = history.rows.iter().map(|row| row.losses).sum();
    let gaps = history
        .logs
        .values()
        .flatten()
        .filter(|event| event.kind == "resume_gap")
        .count();
    format!(
        "torture: {} submissions, {} jobs ({} succeeded, {} failed, {} cancelled), {} attempts of which {lost} lost with \
         their workers, {} followers, {} programs seen by the kernel, {} wipes of Redis, {gaps} announced gaps",
        history.submissions.len(),
        history.rows.len(),
        ended("succeeded"),
        ended("failed"),
        ended("cancelled"),
        history.attempts.len(),
        history.followed.len(),
        history.sightings.len(),
        history.wipes.len(),
    )
}
