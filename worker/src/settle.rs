//! Settling: from how an attempt ended to its committed row, then to Redis.
//!
//! Attempts that end together share a transaction. While Postgres is away the results are held and tried again; their
//! leases go on being renewed, and the number of results on their way is bounded by the consumer.

use std::collections::BTreeMap;
use std::time::Duration;

use common::batch::{Batcher, Error as BatchError, Limits};
use common::ids::{JobId, TenantId, WorkerId};
use common::job::decision::Decision;
use common::queue::{Acked, Queue, Shard};
use common::store::settle::Settlement;
use common::store::{Class, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// First and longest pause before a failed transaction is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Committed.
    Committed,
    /// The attempt was not this worker's any more; nothing was written.
    LeaseLost,
    /// Postgres refuses the data of this settlement.
    Refused,
    /// The process stops hard; whoever takes the job over runs it again.
    GivenUp,
}

/// The settling loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settler {
    batcher: Batcher<(TenantId, Settlement), Settled>,
}

#[derive(Clone, Debug)]
struct Writer {
    worker_id: WorkerId,
    store: Store,
    queue: Queue,
    hard: CancellationToken,
}

impl Settler {
    /// Starts the loop on `tracker`. `hard` ends retries.
    pub fn spawn(
        worker_id: WorkerId,
        store: Store,
        queue: Queue,
        hard: CancellationToken,
        tracker: &TaskTracker,
    ) -> Self {
        let writer = Writer {
            worker_id,
            store,
            queue,
            hard,
        };
        let limits = Limits {
            batch_max: 500,
            parallel: 2,
            backlog: 1_000,
        };
        let batcher = Batcher::spawn(tracker, limits, move |batch: Vec<(TenantId, Settlement)>| {
            let writer = writer.clone();
            async move { writer.settle(batch).await }
        });
        Self { batcher }
    }

    /// Settles one attempt.
    pub async fn settle(&self, tenant_id: TenantId, settlement: Settlement) -> Settled {
        match self.batcher.call((tenant_id, settlement)).await {
            Ok(settled) => settled,
            Err(BatchError::Closed) => Settled::GivenUp,
        }
    }
}

impl Writer {
    async fn settle(&self, batch: Vec<(TenantId, Settlement)>) -> Vec<Settled> {
        let (tenants, settlements): (Vec<TenantId>, Vec<Settlement>) = batch.into_iter().unzip();
        let mut settled = vec![Settled::GivenUp; settlements.len()];
        let mut ranges = vec![(0, settlements.len())];
        while let Some((from, to)) = ranges.pop() {
            match self.commit(&settlements[from..to]).await {
                Commit::Done(changed) => mark(&mut settled[from..to], &settlements[from..to], &changed),
                // One bad row never fails its neighbours.
                Commit::Refused if to - from > 1 => {
                    let middle = from.midpoint(to);
                    ranges.extend([(from, middle), (middle, to)]);
                }
                Commit::Refused => settled[from..to].fill(Settled::Refused),
                Commit::GivenUp => {}
            }
        }
        self.ack(&tenants, &settlements, &settled).await;
        settled
    }

    /// One transaction, tried until Postgres answers.
    async fn commit(&self, settlements: &[Settlement]) -> Commit {
        let mut pause = PAUSE.0;
        let mut is_repeated = false;
        loop {
            match self.store.settle(self.worker_id, settlements).await {
                Ok(changed) if is_repeated => return self.with_settled_before(settlements, changed).await,
                Ok(changed) => return Commit::Done(changed),
                Err(error) if error.class() == Class::Transient => {
                    tracing::warn!(%error, results = settlements.len(), "results wait for Postgres");
                }
                Err(error) => {
                    tracing::error!(%error, results = settlements.len(), "Postgres refuses results");
                    return Commit::Refused;
                }
            }
            is_repeated = true;
            tokio::select! {
                () = self.hard.cancelled() => return Commit::GivenUp,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The answer to an earlier try may have been lost after its commit.
    async fn with_settled_before(&self, settlements: &[Settlement], mut changed: Vec<JobId>) -> Commit {
        for settlement in settlements {
            if changed.contains(&settlement.job_id) {
                continue;
            }
            match self
                .store
                .is_settled(settlement.job_id, settlement.attempt, self.worker_id)
                .await
            {
                Ok(true) => changed.push(settlement.job_id),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, job_id = %settlement.job_id, "cannot tell whether it settled"),
            }
        }
        Commit::Done(changed)
    }

    /// Of the committed settlements that should go on, those that a request to cancel ended. `None` when Postgres does not
    /// say so.
    async fn cancelled_instead(&self, settlements: &[Settlement], settled: &[Settled]) -> Option<Vec<JobId>> {
        let pairs = settlements.iter().zip(settled);
        let going_on: Vec<JobId> = pairs
            .filter(|(settlement, settled)| **settled == Settled::Committed && goes_on(settlement))
            .map(|(settlement, _)| settlement.job_id)
            .collect();
        if going_on.is_empty() {
            return Some(going_on);
        }
        match self.store.still_open(&going_on).await {
            Ok(open) => Some(going_on.into_iter().filter(|id| !open.contains(id)).collect()),
            Err(error) => {
                tracing::warn!(%error, "cannot tell which jobs go on: their leases pass, and reclaim can");
                None
            }
        }
    }

    async fn ack(&self, tenants: &[TenantId], settlements: &[Settlement], settled: &[Settled]) {
        let ended = self.cancelled_instead(settlements, settled).await;
        let mut by_shard: BTreeMap<Shard, Vec<Acked>> = BTreeMap::new();
        for ((tenant_id, settlement), settled) in tenants.iter().zip(settlements).zip(settled) {
            let goes_on = goes_on(settlement);
            if *settled == Settled::Committed && (ended.is_some() || !goes_on) {
                let is_ended = ended.as_ref().is_some_and(|ended| ended.contains(&settlement.job_id));
                by_shard
                    .entry(self.queue.shard_of(*tenant_id))
                    .or_default()
                    .push(Acked {
                        job_id: settlement.job_id,
                        attempt: settlement.attempt,
                        seq: settlement.seq,
                        keeps_places: goes_on && !is_ended,
                    });
            }
        }
        for (shard, acked) in by_shard {
            if let Err(error) = self.queue.ack(shard, &acked).await {
                tracing::warn!(%error, leases = acked.len(), "settled leases pass by themselves");
            }
        }
    }
}

/// Whether another attempt follows.
fn goes_on(settlement: &Settlement) -> bool {
    matches!(
        settlement.decision,
        Decision::RetryAt(..) | Decision::Wait | Decision::GiveBack
    )
}

fn mark(settled: &mut [Settled], settlements: &[Settlement], changed: &[JobId]) {
    for (slot, settlement) in settled.iter_mut().zip(settlements) {
        let is_changed = changed.contains(&settlement.job_id);
        *slot = if is_changed {
            Settled::Committed
        } else {
            Settled::LeaseLost
        };
    }
}

enum Commit {
    Done(Vec<JobId>),
    Refused,
    GivenUp,
}
