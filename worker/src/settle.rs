//! Settling: from how an attempt ended to its committed row, then to Redis.
//!
//! Attempts that end together share a transaction. While Postgres is away the results are held and tried again; their
//! leases go on being renewed, and the number of results on their way is bounded by the consumer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::batch::{Batcher, Error as BatchError, Limits};
use common::cancel::Canceller;
use common::health::Pulse;
use common::ids::{JobId, TenantId, WorkerId};
use common::job::StateName;
use common::queue::{Acked, Dispatch, Keeps, Queue, Shard};
use common::store::events::Chunk;
use common::store::settle::{Committed, Settlement};
use common::store::{Class, Store};
use common::turn;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// First and longest pause before a failed transaction is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Bytes of results, logs and children in a transaction: far from its time limit on a slow disk.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Committed: the job is in this state now, which is `cancelled` where somebody asked for that before it could go on.
    Committed(StateName),
    /// The attempt was not this worker's any more; nothing was written.
    LeaseLost,
    /// Postgres refuses the data of this settlement.
    Refused,
    /// The process stops hard; whoever takes the job over runs it again.
    GivenUp,
}

/// Writes results together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settler {
    batcher: Batcher<(TenantId, Settlement), Settled>,
    underway: Underway,
}

/// Results on their way: while there are any, progress is owed.
#[derive(Clone, Debug)]
struct Underway {
    count: Arc<Mutex<usize>>,
    pulse: Pulse,
}

#[derive(Clone, Debug)]
struct Writer {
    worker_id: WorkerId,
    store: Store,
    queue: Queue,
    hard: CancellationToken,
}

impl Settler {
    /// What is written together is on `tracker`. `hard` ends retries; `pulse` owes commits while results are on their way.
    pub fn spawn(
        worker_id: WorkerId,
        store: Store,
        queue: Queue,
        hard: CancellationToken,
        pulse: Pulse,
        tracker: &TaskTracker,
    ) -> Self {
        pulse.rest();
        let writer = Writer {
            worker_id,
            store,
            queue,
            hard,
        };
        let limits = Limits {
            batch_max: 500,
            bytes_max: BYTES_MAX,
            parallel: 2,
            company: 128,
            backlog: 1_000,
        };
        let batcher = Batcher::new(tracker, limits, bytes, move |batch: Vec<(TenantId, Settlement)>| {
            let writer = writer.clone();
            async move { writer.settle(batch).await }
        });
        let count = Arc::default();
        Self {
            batcher,
            underway: Underway { count, pulse },
        }
    }

    /// Settles one attempt.
    pub async fn settle(&self, tenant_id: TenantId, settlement: Settlement) -> Settled {
        self.underway.begin();
        let settled = match self.batcher.call((tenant_id, settlement)).await {
            Ok(settled) => settled,
            Err(BatchError::Closed) => Settled::GivenUp,
        };
        self.underway.end();
        settled
    }
}

fn bytes((_, settlement): &(TenantId, Settlement)) -> usize {
    let result = settlement.result.as_ref().map_or(0, Vec::len);
    let chunk = settlement.chunk.as_ref().map_or(0, Chunk::bytes);
    let children: usize = settlement.children.iter().map(|child| child.input.len()).sum();
    result + chunk + children
}

impl Underway {
    fn begin(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        self.pulse.owe();
    }

    fn end(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.pulse.rest();
        } else {
            self.pulse.progress();
        }
    }
}

impl Writer {
    async fn settle(&self, batch: Vec<(TenantId, Settlement)>) -> Vec<Settled> {
        let (tenants, settlements): (Vec<TenantId>, Vec<Settlement>) = batch.into_iter().unzip();
        let mut settled = vec![Settled::GivenUp; settlements.len()];
        let mut all = Committed::default();
        let mut ranges = vec![(0, settlements.len())];
        while let Some((from, to)) = ranges.pop() {
            match self.commit(&settlements[from..to]).await {
                Commit::Done(committed) => {
                    mark(&mut settled[from..to], &settlements[from..to], &committed);
                    all.changed.extend(committed.changed);
                    all.woken.extend(committed.woken);
                    all.decided.rejected.extend(committed.decided.rejected);
                    all.decided.superseded.extend(committed.decided.superseded);
                }
                // One bad row never fails its neighbours.
                Commit::Refused if to - from > 1 => {
                    let middle = from.midpoint(to);
                    ranges.extend([(from, middle), (middle, to)]);
                }
                Commit::Refused => settled[from..to].fill(Settled::Refused),
                Commit::GivenUp => {}
            }
        }
        // Before the leases end: if this process dies here, reclaim finds them, and does the same.
        self.next_turns(&settlements, &all).await;
        self.ack(&tenants, &settlements, &all).await;
        self.dispatch(&settlements, &all).await;
        let now = settlements.iter().map(|settlement| settlement.finished_at).max();
        let canceller = Canceller::new(self.store.clone(), self.queue.clone());
        canceller
            .make_way(&all.decided.superseded, now.unwrap_or_default())
            .await;
        settled
    }

    /// One transaction, tried until Postgres answers.
    async fn commit(&self, settlements: &[Settlement]) -> Commit {
        let mut pause = PAUSE.0;
        let mut is_repeated = false;
        loop {
            match self.store.settle(self.worker_id, settlements).await {
                Ok(committed) if is_repeated => return self.with_settled_before(settlements, committed).await,
                Ok(committed) => return Commit::Done(committed),
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
    async fn with_settled_before(&self, settlements: &[Settlement], mut committed: Committed) -> Commit {
        let mut before = Vec::new();
        for settlement in settlements {
            if committed.state(settlement.job_id).is_some() {
                continue;
            }
            match self
                .store
                .is_settled(settlement.job_id, settlement.attempt, self.worker_id)
                .await
            {
                Ok(true) => before.push(settlement.job_id),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, job_id = %settlement.job_id, "cannot tell whether it settled"),
            }
        }
        match self.store.jobs(&before).await {
            Ok(jobs) => committed
                .changed
                .extend(jobs.iter().map(|job| (job.id, job.state.name()))),
            Err(error) => tracing::warn!(%error, "settled leases pass by themselves"),
        }
        Commit::Done(committed)
    }

    async fn ack(&self, tenants: &[TenantId], settlements: &[Settlement], committed: &Committed) {
        let states: HashMap<JobId, StateName> = committed.changed.iter().copied().collect();
        let mut by_shard: BTreeMap<Shard, Vec<Acked>> = BTreeMap::new();
        for (tenant_id, settlement) in tenants.iter().zip(settlements) {
            if let Some(state) = states.get(&settlement.job_id) {
                by_shard
                    .entry(self.queue.shard_of(*tenant_id))
                    .or_default()
                    .push(Acked {
                        job_id: settlement.job_id,
                        attempt: settlement.attempt,
                        seq: settlement.seq,
                        keeps: Keeps::of(*state),
                    });
            }
        }
        for (shard, acked) in by_shard {
            if let Err(error) = self.queue.ack(shard, &acked).await {
                tracing::warn!(%error, leases = acked.len(), "settled leases pass by themselves");
            }
        }
    }

    /// Makes the turns known that may begin since these have ended.
    async fn next_turns(&self, settlements: &[Settlement], committed: &Committed) {
        let has_ended = |settlement: &&Settlement| {
            let state = committed.state(settlement.job_id);
            settlement.turn.is_some() && state.is_some_and(StateName::is_terminal)
        };
        let ended = settlements.iter().filter(has_ended).map(|settlement| settlement.job_id);
        turn::dispatch_next(&self.store, &self.queue, &ended.collect::<Vec<_>>()).await;
    }

    /// Makes known what the commit queued: jobs that waiting ones submitted, and those whose wait is over.
    async fn dispatch(&self, settlements: &[Settlement], committed: &Committed) {
        let submitted = settlements
            .iter()
            .filter(|settlement| !settlement.children.is_empty())
            .filter(|settlement| committed.state(settlement.job_id) == Some(StateName::Waiting))
            .flat_map(|settlement| &settlement.children)
            .filter(|child| !committed.decided.rejected.contains(&child.id))
            .filter(|child| child.spec.run_at.is_none_or(|run_at| run_at <= child.created_at));
        let queued: Vec<Dispatch> = submitted
            .map(Dispatch::from_new)
            .chain(committed.woken.iter().map(Dispatch::from_job))
            .collect();
        if queued.is_empty() {
            return;
        }
        if let Err(error) = self.queue.dispatch(&queued).await {
            tracing::warn!(%error, jobs = queued.len(), "redispatch finds them");
        }
    }
}

fn mark(settled: &mut [Settled], settlements: &[Settlement], committed: &Committed) {
    let states: HashMap<JobId, StateName> = committed.changed.iter().copied().collect();
    for (slot, settlement) in settled.iter_mut().zip(settlements) {
        let state = states.get(&settlement.job_id);
        *slot = state.map_or(Settled::LeaseLost, |state| Settled::Committed(*state));
    }
}

enum Commit {
    Done(Committed),
    Refused,
    GivenUp,
}
