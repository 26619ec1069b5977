//! The claim loop: takes no more than it has slots for, and runs each attempt on the lifecycle's tracker.
//!
//! A slot is free again when its process has ended; the result may still be on its way to Postgres. Results on their
//! way are bounded too, and when there are too many, claiming stops.

pub mod cancels;
pub mod heartbeat;
pub mod held;
pub mod solitude;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::health::Pulse;
use common::ids::WorkerId;
use common::job::spec::SlotClass;
use common::queue::{Error, Mode, Queue, Shard, Want};
use common::store::Store;
use common::store::claim::Claimed;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempts;
use crate::pool::Pool;
use held::HeldAttempt;
use solitude::{EMPTYING_MAX, Solitude};

/// How long an idle loop waits before it looks without having been woken.
const IDLE: Duration = Duration::from_secs(1);

/// How long a loop waits after Redis or Postgres did not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// A slot with room for its result.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What came of a claim.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// Jobs that came, confirmed or not.
    jobs: usize,
    /// When a limit by time may let more through.
    opens_in: Option<Duration>,
    /// A job waits for a worker that holds nothing else.
    is_called_alone: bool,
}

/// One loop: one slot class in one shard.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Who.
    pub worker_id: WorkerId,
    /// What these slots are.
    pub slot: SlotClass,
    /// Labels of the worker.
    pub labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    pub queues: Vec<String>,
    /// Free slots of the class.
    pub slots: Arc<Semaphore>,
    /// Room for attempts and for results on their way.
    pub results: Arc<Semaphore>,
    /// Where claims come from.
    pub queue: Queue,
    /// Who confirms them.
    pub store: Store,
    /// Who runs them.
    pub attempts: Attempts,
    /// Where the slots' sandboxes come from; none for slots that need none.
    pub pool: Option<Pool>,
    /// Shared by all loops of the worker.
    pub solitude: Solitude,
}

impl Consumer {
    /// Claims until `stop`. `pulse` owes a claim that was answered, but while the slots are taken.
    pub async fn run(self, shard: Shard, pulse: Pulse, stop: CancellationToken) {
        let mut waker = self.queue.waker(shard);
        loop {
            pulse.owe();
            // Another worker may have what this one lacks; and a job that nobody claims loses nothing by waiting.
            if !self.is_able().await {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(IDLE) => continue,
                }
            }
            let taken = tokio::select! {
                () = stop.cancelled() => return,
                // What follows is not in the select: a claim that was sent must be carried out.
                room = self.room(&pulse) => {
                    let company = tokio::select! {
                        () = stop.cancelled() => return,
                        company = self.solitude.company(&pulse) => company,
                    };
                    let mode = if company.is_idle(self.attempts.held()) { Mode::Idle } else { Mode::Busy };
                    self.claim(shard, room, mode).await
                }
            };
            if taken.is_ok() {
                pulse.progress();
            }
            match taken {
                Ok(taken) if taken.is_called_alone => self.alone(shard, &pulse, &stop).await,
                Ok(taken) if taken.jobs == 0 => {
                    let limit = taken.opens_in.map_or(IDLE, |opens_in| opens_in.min(IDLE));
                    let woken = tokio::select! {
                        () = stop.cancelled() => return,
                        woken = waker.wait(limit) => woken,
                    };
                    if let Err(error) = woken {
                        tracing::debug!(%error, "cannot wait for work");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(error = %format!("{error:#}"), "cannot claim");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn is_able(&self) -> bool {
        match &self.pool {
            Some(pool) => pool.is_able().await,
            None => true,
        }
    }

    /// Claims one job as the only one that this worker holds, and waits until it has ended.
    async fn alone(&self, shard: Shard, pulse: &Pulse, stop: &CancellationToken) {
        let Some(reserved) = self.solitude.reserve() else {
            return;
        };
        let held = self.attempts.held();
        pulse.rest();
        let emptied = tokio::select! {
            () = stop.cancelled() => return,
            emptied = reserved.emptied(held, EMPTYING_MAX) => emptied,
        };
        if !emptied {
            return;
        }
        let room = tokio::select! {
            () = stop.cancelled() => return,
            room = self.room(pulse) => room,
        };
        if let Err(error) = self.claim(shard, room, Mode::Alone).await {
            tracing::debug!(error = %format!("{error:#}"), "cannot claim alone");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ended = reserved.emptied(held, Duration::MAX) => {}
        }
    }

    /// Waits for at least one free slot with room for its result, and takes all there are.
    async fn room(&self, pulse: &Pulse) -> Vec<Room> {
        if self.slots.available_permits() == 0 || self.results.available_permits() == 0 {
            pulse.rest();
        }
        let (Ok(slot), Ok(result)) = (
            Arc::clone(&self.slots).acquire_owned().await,
            Arc::clone(&self.results).acquire_owned().await,
        ) else {
            return std::future::pending().await;
        };
        pulse.owe();
        let mut room = vec![(slot, result)];
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            let Ok(result) = Arc::clone(&self.results).try_acquire_owned() else {
                break;
            };
            room.push((slot, result));
        }
        room
    }

    async fn claim(&self, shard: Shard, mut room: Vec<Room>, mode: Mode) -> anyhow::Result<Taken> {
        let want = Want {
            free: u32::try_from(room.len()).unwrap_or(u32::MAX),
            slot: self.slot,
            labels: self.labels.clone(),
            queues: self.queues.clone(),
            mode,
        };
        // The leases begin when Redis hears this, however long the answers take.
        let asked = Instant::now();
        let handout = match self.queue.claim(shard, self.worker_id, &want).await {
            Ok(handout) => handout,
            Err(Error::Closed) => return Ok(Taken::default()),
            Err(error) => return Err(error.into()),
        };
        let mut taken = Taken {
            jobs: handout.claims.len(),
            opens_in: handout.opens_in,
            is_called_alone: handout.is_called_alone,
        };
        if handout.claims.is_empty() {
            return Ok(taken);
        }
        let claims = handout.claims;
        if asked.elapsed() >= self.queue.lease_ttl() {
            anyhow::bail!("the claims were answered when their leases had passed");
        }
        // After an error the rows may be taken or not, so the leases are not dropped: they pass, and reclaim reads the rows.
        let now = self.attempts.clock().now();
        let claimed = self.store.claim(self.worker_id, &claims, now).await?;
        let refused: Vec<_> = claims
            .iter()
            .map(|claim| (claim.job_id, claim.attempt))
            .filter(|(id, _)| !claimed.iter().any(|claimed| claimed.job.id == *id))
            .collect();
        metrics::counter!("hothouse_claims_total").increment(claimed.len() as u64);
        taken.jobs = claimed.len().max(refused.len());
        for claimed in claimed {
            let Some(room) = room.pop() else { break };
            self.start(claimed, asked, room);
        }
        if let Err(error) = self.queue.drop_claims(shard, self.worker_id, &refused).await {
            tracing::debug!(%error, "unconfirmed claims pass by themselves");
        }
        Ok(taken)
    }

    fn start(&self, claimed: Claimed, asked: Instant, room: (OwnedSemaphorePermit, OwnedSemaphorePermit)) {
        let held = HeldAttempt {
            job_id: claimed.job.id,
            attempt: claimed.job.attempt,
            tenant_id: claimed.job.tenant_id,
        };
        self.attempts.spawn(claimed, held, asked, room);
    }
}
