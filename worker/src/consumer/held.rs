//! The attempts that this worker holds now.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use common::ids::{JobId, TenantId};
use tokio::sync::watch;

/// Why an attempt should end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Somebody asked to cancel the job.
    Cancel,
    /// The attempt is not this worker's any more: write nothing.
    Lost,
    /// To be given back: the worker is being drained and its time is over, or its claim was confirmed when its lease was gone.
    Drain,
}

/// What the holder of an attempt is told.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// The job's sandbox may run on until then; each heartbeat that succeeds moves it.
    pub run_until: Instant,
    /// Set once: end before you are done.
    pub stop: Option<Stop>,
}

/// One held attempt as heartbeats see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldAttempt {
    /// The job.
    pub job_id: JobId,
    /// The fence.
    pub attempt: u32,
    /// Whose job it is: decides the shard.
    pub tenant_id: TenantId,
}

/// All held attempts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Held {
    unheard: Arc<AtomicBool>,
    attempts: Arc<Mutex<Attempts>>,
}

/// Each held attempt with its holder's ear.
type Attempts = HashMap<JobId, (HeldAttempt, watch::Sender<Orders>)>;

/// An attempt leaves [`Held`] when this is dropped.
#[derive(Debug)]
pub struct Holding {
    held: Held,
    attempt: HeldAttempt,
    /// What the holder is told.
    pub orders: watch::Receiver<Orders>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut attempts = self.held.lock();
        if attempts
            .get(&self.attempt.job_id)
            .is_some_and(|(held, _)| *held == self.attempt)
        {
            attempts.remove(&self.attempt.job_id);
        }
    }
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an attempt whose lease was taken; its sandbox may run until `run_until`. An older one of the same job was lost: this
    /// worker stood still, and has claimed it again before a heartbeat told so.
    pub fn add(&self, attempt: HeldAttempt, run_until: Instant) -> Holding {
        let (sender, orders) = watch::channel(Orders { run_until, stop: None });
        let older = self.lock().insert(attempt.job_id, (attempt, sender));
        if let Some((_, sender)) = older {
            sender.send_modify(|orders| orders.stop = Some(Stop::Lost));
        }
        Holding {
            held: self.clone(),
            attempt,
            orders,
        }
    }

    /// Every held attempt.
    pub fn all(&self) -> Vec<HeldAttempt> {
        self.lock().values().map(|(attempt, _)| *attempt).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Lets sandboxes run until `run_until`: the lease was renewed.
    pub fn renew(&self, attempts: &[HeldAttempt], run_until: Instant) {
        let held = self.lock();
        for attempt in attempts {
            if let Some((_, sender)) = held.get(&attempt.job_id).filter(|(held, _)| held == attempt) {
                sender.send_modify(|orders| orders.run_until = orders.run_until.max(run_until));
            }
        }
    }

    /// Says whether neither Redis nor Postgres heard the last heartbeat.
    pub fn set_unheard(&self, unheard: bool) {
        self.unheard.store(unheard, Ordering::Relaxed);
    }

    /// Whether a sandbox may have ended because nobody hears this worker, and not through its job.
    pub fn is_unheard(&self) -> bool {
        self.unheard.load(Ordering::Relaxed)
    }

    /// Orders one attempt to stop. The first order stands, but losing the lease overrules the others.
    pub fn stop(&self, job_id: JobId, stop: Stop) {
        if let Some((attempt, sender)) = self.lock().get(&job_id) {
            tracing::debug!(%job_id, attempt = attempt.attempt, ?stop, "an attempt is told to stop");
            sender.send_modify(|orders| {
                if orders.stop.is_none() || stop == Stop::Lost {
                    orders.stop = Some(stop);
                }
            });
        }
    }

    /// Orders all of them to stop.
    pub fn stop_all(&self, stop: Stop) {
        for attempt in self.all() {
            self.stop(attempt.job_id, stop);
        }
    }
}

/// Waits until a sandbox may run, or the attempt should stop: where the worker stood still after its claim was confirmed, the
/// lease may have passed meanwhile, and a heartbeat renews it first.
pub async fn allowed(orders: &mut watch::Receiver<Orders>) {
    loop {
        let now = *orders.borrow_and_update();
        if now.stop.is_some() || now.run_until > Instant::now() || orders.changed().await.is_err() {
            return;
        }
    }
}

/// Waits for an order to stop; pending for ever when none comes.
pub async fn stopped(orders: &mut watch::Receiver<Orders>) -> Stop {
    loop {
        if let Some(stop) = orders.borrow_and_update().stop {
            return stop;
        }
        if orders.changed().await.is_err() {
            // The holding is gone: nobody can order anything any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_order_stands_unless_the_lease_is_lost() {
        let held = Held::default();
        let attempt = HeldAttempt {
            job_id: JobId::new(),
            attempt: 1,
            tenant_id: TenantId::new(),
        };
        let mut holding = held.add(attempt, Instant::now());
        held.stop(attempt.job_id, Stop::Cancel);
        held.stop(attempt.job_id, Stop::Drain);
        assert_eq!(stopped(&mut holding.orders).await, Stop::Cancel);
        held.stop(attempt.job_id, Stop::Lost);
        assert_eq!(stopped(&mut holding.orders).await, Stop::Lost);
        drop(holding);
        assert!(held.is_empty());
    }

    #[tokio::test]
    async fn what_has_no_time_left_waits_for_a_renewal() {
        let held = Held::default();
        let attempt = HeldAttempt {
            job_id: JobId::new(),
            attempt: 1,
            tenant_id: TenantId::new(),
        };
        let holding = held.add(attempt, Instant::now());
        let mut orders = holding.orders.clone();
        let waiting = allowed(&mut orders);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let later = Instant::now() + std::time::Duration::from_mins(1);
        held.renew(&[attempt], later);
        waiting.await;
        // An answer that comes late takes nothing away.
        held.renew(&[attempt], Instant::now());
        assert_eq!(holding.orders.borrow().run_until, later);
    }

    #[tokio::test]
    async fn an_older_holding_is_lost_and_does_not_remove_a_newer_one() {
        let held = Held::default();
        let first = HeldAttempt {
            job_id: JobId::new(),
            attempt: 1,
            tenant_id: TenantId::new(),
        };
        let mut old = held.add(first, Instant::now());
        let new = held.add(HeldAttempt { attempt: 2, ..first }, Instant::now());
        allowed(&mut old.orders).await;
        assert_eq!(stopped(&mut old.orders).await, Stop::Lost);
        assert_eq!(new.orders.borrow().stop, None);
        drop(old);
        assert_eq!(held.len(), 1);
    }
}
