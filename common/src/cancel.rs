//! Cancelling many jobs: batch after batch in Postgres, each made known in Redis before the next.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::clock::Clock;
use crate::ids::{JobId, TenantId};
use crate::job::StateName;
use crate::queue::{Dispatch, Queue};
use crate::store::bulk::StoppedBatch;
use crate::store::list::Filter;
use crate::store::wait::Orphaned;
use crate::store::{self, Store};

/// The states from which a job can be cancelled. Those that nobody runs come first: what would start meanwhile does not.
pub const OPEN: [StateName; 5] = [
    StateName::Queued,
    StateName::Scheduled,
    StateName::Retrying,
    StateName::Waiting,
    StateName::Running,
];

/// Jobs of one transaction: some tens of milliseconds, in which others wait for these rows alone.
const BATCH: u32 = 2_000;

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Jobs that it acted on.
    pub matched: u64,
    /// Whether its time was over before it had seen all: the same call goes on.
    pub more: bool,
}

/// Cancels jobs in both stores. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Canceller {
    store: Store,
    queue: Queue,
}

impl Canceller {
    /// A canceller over both stores.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self { store, queue }
    }

    /// Cancels the tenant's jobs in one of `states` that match, for at most about `budget`. Jobs that somebody runs are
    /// asked to stop, once. Redis may be away: workers ask Postgres when they register again.
    ///
    /// # Errors
    /// When Postgres is away; what was cancelled until then stays so.
    pub async fn matching(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        states: &[StateName],
        clock: &Clock,
        budget: Option<Duration>,
    ) -> Result<Progress, store::Error> {
        let begun = Instant::now();
        let mut progress = Progress::default();
        // Redis hears of each batch while Postgres does the next.
        let mut untold = StoppedBatch::default();
        for state in states {
            loop {
                let cancelled = self
                    .store
                    .cancel_matching(tenant_id, filter, *state, BATCH, clock.now());
                let (batch, ()) = tokio::join!(cancelled, self.tell(tenant_id, untold));
                untold = batch?;
                if untold.stopped.is_empty() {
                    break;
                }
                progress.matched += u64::try_from(untold.stopped.len()).unwrap_or(0);
                if budget.is_some_and(|budget| begun.elapsed() >= budget) {
                    self.tell(tenant_id, untold).await;
                    progress.more = true;
                    return Ok(progress);
                }
            }
        }
        Ok(progress)
    }

    /// Cancels the children of a parent that has ended. What somebody else is changing at this moment is left, and so is
    /// the mark: the next call finds it.
    ///
    /// # Errors
    /// As [`Self::matching`].
    pub async fn orphans(&self, of: Orphaned, clock: &Clock) -> Result<u64, store::Error> {
        let filter = Filter {
            parent_id: Some(of.parent_id),
            ..Filter::default()
        };
        let progress = self.matching(of.tenant_id, &filter, &OPEN, clock, None).await?;
        if progress.matched == 0 {
            self.store.close_orphaned(of.parent_id).await?;
        }
        Ok(progress.matched)
    }

    /// Stops jobs that give way to others of their concurrency key. That they must is committed: what fails here is done by
    /// the redispatch duty.
    pub async fn make_way(&self, superseded: &[(TenantId, JobId)], now: DateTime<Utc>) {
        for (tenant_id, id) in superseded {
            let stopped = match self.store.cancel(*tenant_id, *id, now).await {
                Ok(Some(job)) => {
                    let ended = job.state.is_terminal();
                    self.queue.cancel(*tenant_id, *id, job.seq, ended).await.is_ok()
                }
                Ok(None) => true,
                Err(_away) => false,
            };
            if !stopped {
                tracing::debug!(%id, "a job that gives way is not stopped yet");
            }
        }
    }

    async fn tell(&self, tenant_id: TenantId, batch: StoppedBatch) {
        if batch.stopped.is_empty() {
            return;
        }
        let stopped = batch.stopped.iter().map(|job| (job.job_id, job.seq, job.ended));
        if let Err(error) = self.queue.cancel_many(tenant_id, stopped.collect()).await {
            tracing::debug!(%error, jobs = batch.stopped.len(), "redis does not know of cancelled jobs yet");
        }
        let woken: Vec<Dispatch> = batch.woken.iter().map(Dispatch::from_job).collect();
        if let Err(error) = self.queue.dispatch(&woken).await {
            tracing::debug!(%error, jobs = woken.len(), "redispatch finds them");
        }
    }
}
