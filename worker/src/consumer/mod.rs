//! The claim loop: takes no more than it has slots for, and runs each attempt on the lifecycle's tracker.
//!
//! A slot is free again when its process has ended; the result may still be on its way to Postgres. Results on their
//! way are bounded too, and when there are too many, claiming stops. While Postgres confirms one handout, Redis gives
//! the next.

pub mod cancels;
mod confirm;
pub mod doubt;
pub mod heartbeat;
pub mod held;
pub mod solitude;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use common::health::Pulse;
use common::ids::WorkerId;
use common::job::spec::SlotClass;
use common::queue::{Error, Mode, Queue, Shard, Want};
use common::store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::attempt::{Attempts, Room};
use crate::pool::Pool;
use doubt::Doubt;
use solitude::{Company, Reserved, Solitude};

/// How long an idle loop waits before it looks without having been woken. A wake is lost only with Redis itself.
const IDLE: Duration = Duration::from_secs(5);

/// How long a loop whose sandboxes cannot be started waits before it tries again.
const UNABLE: Duration = Duration::from_secs(1);

/// How long a loop waits after Redis or Postgres did not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// Handouts that Postgres confirms at once.
const CONFIRMING_MAX: usize = 2;

/// What came of a claim.
#[derive(Debug, Default)]
struct Taken {
    /// The jobs that came, while Postgres has the last word on them.
    confirming: Option<Confirming>,
    /// There may be more.
    has_more: bool,
    /// When a limit by time may let more through.
    opens_in: Option<Duration>,
    /// A job waits for a worker that holds nothing else.
    is_called_alone: bool,
}

/// A handout that is being confirmed; an error when Postgres is away. It goes on when nobody waits for it.
type Confirming = JoinHandle<anyhow::Result<()>>;

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
    /// Likewise.
    pub doubt: Doubt,
}

impl Consumer {
    /// Claims until `stop`. `pulse` owes a claim that was answered, but while the slots are taken.
    pub async fn run(self, shard: Shard, pulse: Pulse, stop: CancellationToken) {
        let mut waker = self.queue.waker(shard, self.slot);
        let mut confirming = VecDeque::with_capacity(CONFIRMING_MAX);
        loop {
            pulse.owe();
            // Another worker may have what this one lacks; and a job that nobody claims loses nothing by waiting.
            if !self.is_able().await {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(UNABLE) => continue,
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
                    let mode = company.mode(self.attempts.held());
                    self.claim(shard, room, mode, Some(company)).await
                }
            };
            let claimed = match taken {
                Ok(taken) if taken.is_called_alone => {
                    pulse.progress();
                    self.alone(shard, &pulse, &stop).await;
                    Ok(())
                }
                Ok(taken) => {
                    confirming.extend(taken.confirming);
                    let settled = settled(&mut confirming).await.inspect(|()| pulse.progress());
                    if settled.is_err() || taken.has_more {
                        settled
                    } else {
                        let limit = taken.opens_in.map_or(IDLE, |opens_in| opens_in.min(IDLE));
                        let woken = tokio::select! {
                            () = stop.cancelled() => return,
                            woken = waker.wait(limit) => woken,
                        };
                        woken.map(drop).map_err(Into::into)
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = claimed {
                tracing::debug!(error = %format!("{error:#}"), "cannot claim");
                tokio::time::sleep(PAUSE).await;
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
        let Some(mut reserved) = self.solitude.reserve() else {
            return;
        };
        pulse.rest();
        let emptied = tokio::select! {
            () = stop.cancelled() => return,
            emptied = self.emptied(shard, &reserved) => emptied,
        };
        if !emptied {
            return;
        }
        let room = tokio::select! {
            () = stop.cancelled() => return,
            room = self.room(pulse) => room,
        };
        let claimed = match self.claim(shard, room, Mode::Alone, None).await {
            Ok(Taken {
                confirming: Some(handout),
                ..
            }) => {
                reserved.has_claimed();
                confirmed(handout).await
            }
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = claimed {
            tracing::debug!(error = %format!("{error:#}"), "cannot claim alone");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ended = reserved.emptied(self.attempts.held(), Duration::MAX) => {}
        }
    }

    /// Waits until this worker holds nothing, for as long as it is called and its patience lasts.
    async fn emptied(&self, shard: Shard, reserved: &Reserved) -> bool {
        while let Some(limit) = reserved.patience() {
            if reserved.emptied(self.attempts.held(), limit).await {
                return true;
            }
            // To ask is also to say that this worker is still at it.
            match self.claim(shard, Vec::new(), Mode::Busy, None).await {
                Ok(taken) if taken.is_called_alone => {}
                _ => return false,
            }
        }
        false
    }

    /// Waits for at least one free slot with room for its result, and for a Postgres that can confirm what is claimed for it.
    /// Takes all the room that there is.
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
        self.doubt.over(&self.store).await;
        self.give_back_unheard().await;
        let mut room = vec![(slot, result)];
        while let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            let Ok(result) = Arc::clone(&self.results).try_acquire_owned() else {
                break;
            };
            room.push((slot, result));
        }
        room
    }

    /// Asks Redis, and lets Postgres confirm what came.
    async fn claim(
        &self,
        shard: Shard,
        mut room: Vec<Room>,
        mode: Mode,
        company: Option<Company>,
    ) -> anyhow::Result<Taken> {
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
        room.truncate(handout.claims.len());
        // With more than one the processors have enough to do.
        if let ([_], Some(pool)) = (handout.claims.as_slice(), &self.pool) {
            pool.rouse();
        }
        let confirming = (!handout.claims.is_empty()).then(|| {
            let consumer = self.clone();
            self.attempts.tracker().spawn(async move {
                let confirmed = consumer.confirm(shard, handout.claims, asked, room).await;
                drop(company);
                confirmed
            })
        });
        Ok(Taken {
            confirming,
            has_more: handout.has_more,
            opens_in: handout.opens_in,
            is_called_alone: handout.is_called_alone,
        })
    }
}

/// Forgets handouts that are confirmed, and waits for the oldest while there are too many.
async fn settled(confirming: &mut VecDeque<Confirming>) -> anyhow::Result<()> {
    while confirming.len() >= CONFIRMING_MAX || confirming.front().is_some_and(JoinHandle::is_finished) {
        let Some(handout) = confirming.pop_front() else { break };
        confirmed(handout).await?;
    }
    Ok(())
}

async fn confirmed(handout: Confirming) -> anyhow::Result<()> {
    handout.await.context("confirming claims panicked")?
}
