//! Cancelling many jobs: batch after batch in Postgres, each made known in Redis before the next.

use std::collections::BTreeMap;
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
use crate::turn;

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

/// How long a call waits for rows that somebody else is just changing, and between two looks at them.
const LOCKED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Jobs that it acted on.
    pub matched: u64,
    /// Whether some may be left, for its time was over or somebody else kept them: the same call goes on.
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
    /// asked to stop, once. One that changes its state meanwhile is found in the next round, until there is none. Redis may be
    /// away: workers ask Postgres when they register again.
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
        let (mut progress, mut changed_at) = (Progress::default(), Instant::now());
        let ends_at = budget.map(|budget| changed_at + budget);
        loop {
            for state in states {
                let done = self.in_state(tenant_id, filter, *state, clock, ends_at).await?;
                progress.matched += done.matched;
                if done.more {
                    progress.more = true;
                    return Ok(progress);
                }
                if done.matched > 0 {
                    changed_at = Instant::now();
                }
            }
            if !self.store.is_any_to_cancel(tenant_id, filter, states).await? {
                return Ok(progress);
            }
            if is_over(ends_at) || changed_at.elapsed() >= LOCKED.0 {
                progress.more = true;
                return Ok(progress);
            }
            tokio::time::sleep(LOCKED.1).await;
        }
    }

    /// The same for one state, batch after batch, until one is empty. Redis hears of each while Postgres does the next.
    async fn in_state(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        state: StateName,
        clock: &Clock,
        ends_at: Option<Instant>,
    ) -> Result<Progress, store::Error> {
        let (mut progress, mut untold) = (Progress::default(), StoppedBatch::default());
        loop {
            let cancelled = self.store.cancel_matching(tenant_id, filter, state, BATCH, clock.now());
            let (batch, ()) = tokio::join!(cancelled, self.tell(tenant_id, untold));
            untold = batch?;
            if untold.stopped.is_empty() {
                return Ok(progress);
            }
            progress.matched += u64::try_from(untold.stopped.len()).unwrap_or(0);
            if is_over(ends_at) {
                self.tell(tenant_id, untold).await;
                progress.more = true;
                return Ok(progress);
            }
        }
    }

    /// Cancels the children of a parent that has ended. When some are left, so is the mark: the next call finds them.
    ///
    /// # Errors
    /// As [`Self::matching`].
    pub async fn orphans(&self, of: Orphaned, clock: &Clock) -> Result<u64, store::Error> {
        let filter = Filter {
            parent_id: Some(of.parent_id),
            ..Filter::default()
        };
        let progress = self.matching(of.tenant_id, &filter, &OPEN, clock, None).await?;
        if progress == Progress::default() {
            self.store.close_orphaned(of.parent_id).await?;
        }
        Ok(progress.matched)
    }

    /// Stops jobs that give way to others of their concurrency key. That they must is committed: what fails here is done by
    /// the redispatch duty.
    pub async fn make_way(&self, superseded: &[(TenantId, JobId)], now: DateTime<Utc>) {
        if let Err(error) = self.all(superseded, now).await {
            tracing::debug!(%error, jobs = superseded.len(), "jobs that give way are not all stopped yet");
        }
    }

    /// Stops these jobs, batch after batch; those that run are told again. Answers how many had not ended.
    ///
    /// # Errors
    /// As [`Self::matching`].
    pub async fn all(&self, jobs: &[(TenantId, JobId)], now: DateTime<Utc>) -> Result<u64, store::Error> {
        let mut of_tenants: BTreeMap<TenantId, Vec<JobId>> = BTreeMap::new();
        for (tenant_id, id) in jobs {
            of_tenants.entry(*tenant_id).or_default().push(*id);
        }
        let mut stopped = 0;
        for (tenant_id, ids) in of_tenants {
            for ids in ids.chunks(BATCH as usize) {
                let batch = self.store.cancel_all(tenant_id, ids, now).await?;
                stopped += u64::try_from(batch.stopped.len()).unwrap_or(0);
                self.tell(tenant_id, batch).await;
            }
        }
        Ok(stopped)
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
        turn::dispatch_next(&self.store, &self.queue, &batch.turns).await;
    }
}

fn is_over(ends_at: Option<Instant>) -> bool {
    ends_at.is_some_and(|at| Instant::now() >= at)
}
