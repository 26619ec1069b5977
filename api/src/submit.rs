//! Accepting jobs: committed together, answered, then dispatched outside of the answer's path.
//!
//! # Invariants
//! - What is answered with 202 is committed in Postgres.
//! - Redis may be away: a dispatch that fails or has no room is dropped, and the redispatch duty finds the row.
//! - What comes after a job for which there was no room a moment ago is not offered at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::batch::{self, Batcher, Limits};
use common::job::NewJob;
use common::queue::{Dispatch, Full, Queue};
use common::store::insert::{Accepted, Submission};
use common::store::{Error, Store};
use tokio::sync::{MutexGuard, mpsc};
use tokio_util::task::TaskTracker;

use crate::problem::Problem;

/// Bytes of inputs in a transaction: so many that the rest of its cost does not show, and far from its time limit on a slow
/// disk.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Lone jobs: many in a transaction.
const SINGLES: Limits = Limits {
    batch_max: 1_000,
    bytes_max: BYTES_MAX,
    // A row costs less in a larger statement, and what is under way leaves a processor to connections: with 64 callers on two
    // processors a tenth more is accepted than with a second from 24 jobs.
    parallel: 2,
    company: 64,
    backlog: 20_000,
};
/// Batches, which are large already: they must not hold up lone jobs, nor fill the memory.
const BULK: Limits = Limits {
    batch_max: 4,
    bytes_max: BYTES_MAX,
    // While one waits for the disk, or for its next request, the other has Postgres: a quarter more is accepted.
    parallel: 2,
    company: 1,
    backlog: 64,
};
/// How long a lone job keeps batches to one at a time.
const LONE: Duration = Duration::from_secs(1);
/// Commits whose dispatch may wait.
const DISPATCH_BACKLOG: usize = 64;
/// Jobs of one dispatch.
const DISPATCH_MAX: usize = 4_000;

type Answer = Result<Accepted, Error>;

/// Where accepted jobs go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Submitter {
    singles: Batcher<Submission, Answer>,
    bulk: Batcher<Submission, Answer>,
    give_way: Arc<GiveWay>,
    dispatches: mpsc::Sender<Vec<Dispatch>>,
}

impl Submitter {
    /// What is committed together is on `tracker`, and so is the loop of dispatches, which ends when the last clone is gone.
    pub fn spawn(tracker: &TaskTracker, store: &Store, queue: &Queue) -> Self {
        let (dispatches, receiver) = mpsc::channel(DISPATCH_BACKLOG);
        tracker.spawn(dispatch(queue.clone(), receiver));

        let give_way = Arc::new(GiveWay::default());
        let start = |limits, give_way: Option<Arc<GiveWay>>| {
            let (store, dispatches) = (store.clone(), dispatches.clone());
            Batcher::new(tracker, limits, bytes, move |submissions: Vec<Submission>| {
                let (store, dispatches, give_way) = (store.clone(), dispatches.clone(), give_way.clone());
                async move {
                    let _turn = match &give_way {
                        Some(give_way) => give_way.enter().await,
                        None => None,
                    };
                    let answers = store.insert(&submissions).await;
                    hand_over(&dispatches, submissions.iter().zip(&answers).flat_map(ready).collect());
                    answers
                }
            })
        };
        Self {
            singles: start(SINGLES, None),
            bulk: start(BULK, Some(Arc::clone(&give_way))),
            give_way,
            dispatches,
        }
    }

    /// Commits a submission.
    ///
    /// # Errors
    /// 503 when Postgres is away or the process is stopping.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, Problem> {
        let batcher = match submission.jobs.len() {
            0 => &self.singles,
            1 => {
                self.give_way.lone_job_came();
                &self.singles
            }
            _ => &self.bulk,
        };
        Ok(batcher.call(submission).await??)
    }

    /// Makes queued jobs known that somebody else committed.
    pub fn dispatch(&self, jobs: Vec<Dispatch>) {
        hand_over(&self.dispatches, jobs);
    }

    /// Commits nothing, to know that commits go through.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub async fn probe(&self) -> Result<(), Problem> {
        let tenant_id = common::ids::TenantId(uuid::Uuid::nil());
        self.submit(Submission {
            tenant_id,
            jobs: Vec::new(),
            idempotency: None,
        })
        .await
        .map(drop)
    }
}

fn bytes(submission: &Submission) -> usize {
    submission.jobs.iter().map(|job| job.input.len()).sum()
}

/// Lets batches in: all that come, but one at a time while lone jobs come, for these need the processors and the disk too.
#[derive(Debug, Default)]
struct GiveWay {
    lone_job_at: Mutex<Option<Instant>>,
    turn: tokio::sync::Mutex<()>,
}

impl GiveWay {
    fn lone_job_came(&self) {
        *self.lone_job_at() = Some(Instant::now());
    }

    /// Waits for the batch before this one, if lone jobs came lately. What it answers is held while the batch is under way.
    async fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let is_lately = self.lone_job_at().is_some_and(|at| at.elapsed() < LONE);
        if is_lately { Some(self.turn.lock().await) } else { None }
    }

    fn lone_job_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.lone_job_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<batch::Error> for Problem {
    fn from(error: batch::Error) -> Self {
        match error {
            batch::Error::Closed => Self::unavailable("the submission was not answered"),
        }
    }
}

/// The jobs of an inserted submission that may run at once.
fn ready((submission, answer): (&Submission, &Answer)) -> Vec<Dispatch> {
    let inserted = |job: &&NewJob| match answer {
        Ok(Accepted::Inserted) => true,
        Ok(Accepted::Decided(decided)) => !decided.rejected.contains(&job.id),
        _ => false,
    };
    let may_run = |job: &&NewJob| job.spec.run_at.is_none_or(|run_at| run_at <= job.created_at);
    submission
        .jobs
        .iter()
        .filter(may_run)
        .filter(inserted)
        .map(Dispatch::from_new)
        .collect()
}

fn hand_over(dispatches: &mpsc::Sender<Vec<Dispatch>>, jobs: Vec<Dispatch>) {
    if !jobs.is_empty() && dispatches.try_send(jobs).is_err() {
        metrics::counter!("hothouse_http_dispatches_dropped_total").increment(1);
    }
}

async fn dispatch(queue: Queue, mut receiver: mpsc::Receiver<Vec<Dispatch>>) {
    let mut arrived = Vec::new();
    let mut full = Full::default();
    let mut is_away = false;
    while receiver.recv_many(&mut arrived, DISPATCH_BACKLOG).await > 0 {
        let now = Instant::now();
        let offered = arrived.drain(..).flatten().filter(|job| !full.leaves_out(job, now));
        let jobs: Vec<Dispatch> = offered.collect();
        for chunk in jobs.chunks(DISPATCH_MAX) {
            let outcome = queue.dispatch(chunk).await;
            match &outcome {
                Ok(answers) => full.note(chunk, answers, Instant::now()),
                Err(error) => {
                    metrics::counter!("hothouse_http_dispatches_dropped_total").increment(1);
                    // Once: under load this would be said thousands of times.
                    if !is_away {
                        tracing::warn!(
                            error = error as &dyn std::error::Error,
                            "dispatch failed: redispatch takes over"
                        );
                    }
                }
            }
            is_away = outcome.is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn batches_enter_together_until_a_lone_job_comes() {
        let give_way = GiveWay::default();
        let _together = [
            give_way.enter().now_or_never().unwrap(),
            give_way.enter().now_or_never().unwrap(),
        ];

        give_way.lone_job_came();
        let first = give_way.enter().now_or_never().unwrap();
        assert!(first.is_some() && give_way.enter().now_or_never().is_none());
        drop(first);
        assert!(give_way.enter().now_or_never().is_some());
    }

    #[test]
    fn a_lone_job_is_forgotten_after_a_while() {
        let give_way = GiveWay::default();
        *give_way.lone_job_at() = Instant::now().checked_sub(LONE);

        assert!(give_way.enter().now_or_never().unwrap().is_none());
    }
}
