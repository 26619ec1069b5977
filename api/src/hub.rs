//! Who follows which job: one subscription to Redis's hints wakes every follower of this process.
//!
//! A hint carries no data. A follower that is woken reads from its cursor, and it reads every now and then without a
//! hint too, so a lost one costs time and loses nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::ids::JobId;
use common::queue::{Channel, Hint, Queue};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::changes::Changes;

/// Time between two attempts to subscribe.
const RECONNECT: Duration = Duration::from_millis(500);
/// How often a follower looks by itself while no hints come.
const BLIND: Duration = Duration::from_secs(1);

/// The followers of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    followers: Arc<Mutex<HashMap<JobId, Watch>>>,
    changes: Changes,
    is_connected: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watch {
    told: watch::Sender<Told>,
    followers: usize,
}

/// What was said of a job since it is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its log has events up to this number at least.
    pub seq: u64,
    /// How often it may have changed in a way that no number tells.
    pub changes: u64,
}

/// The interest of one reader in one job; it ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    hub: Hub,
    job_id: JobId,
    told: watch::Receiver<Told>,
}

impl Hub {
    /// A hub without followers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to follow a job. Read the job after this, not before: then nothing falls in between.
    pub fn follow(&self, job_id: JobId) -> Follower {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = followers.entry(job_id).or_insert_with(|| Watch {
            told: watch::Sender::default(),
            followers: 0,
        });
        watch.followers += 1;
        Follower {
            hub: self.clone(),
            job_id,
            told: watch.told.subscribe(),
        }
    }

    /// How long a follower waits for a hint before it looks by itself: longer while hints come.
    pub fn patience(&self, heartbeat: Duration) -> Duration {
        if self.is_connected.load(Ordering::Relaxed) {
            heartbeat
        } else {
            heartbeat.min(BLIND)
        }
    }

    /// For those who follow a tenant and not a job.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Wakes whoever follows a job, and makes them look at its row.
    pub fn changed(&self, job_id: JobId) {
        self.tell(job_id, |told| told.changes += 1);
    }

    fn hint(&self, hint: Hint) {
        self.tell(hint.job_id, |told| told.seq = told.seq.max(hint.seq));
    }

    fn tell(&self, job_id: JobId, what: impl FnOnce(&mut Told)) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = followers.get(&job_id) {
            watch.told.send_modify(what);
        }
        drop(followers);
        self.announce(job_id);
    }

    /// Tells those who follow a whole tenant of a job that nobody can follow yet.
    pub fn announce(&self, job_id: JobId) {
        self.changes.hint(job_id);
    }

    fn wake_all(&self) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        for watch in followers.values() {
            watch.told.send_modify(|told| told.changes += 1);
        }
        drop(followers);
        self.changes.miss();
    }

    /// Jobs that somebody follows.
    pub fn followed(&self) -> usize {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Passes hints on until `stop`. After every new subscription everybody looks once, for what was said meanwhile
    /// is gone.
    pub async fn run(self, queue: Queue, stop: CancellationToken) {
        let mut is_away = false;
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.pass_on(&queue) => ended,
            };
            if let Err(error) = &ended
                && !is_away
            {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "no hints: followers look every now and then"
                );
            }
            is_away = ended.is_err();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RECONNECT) => {}
            }
        }
    }

    async fn pass_on(&self, queue: &Queue) -> Result<(), common::queue::Error> {
        let mut hints = queue.subscribe(Channel::Hints).await?;
        self.is_connected.store(true, Ordering::Relaxed);
        self.wake_all();
        while let Some(hint) = hints.next().await {
            self.hint(hint);
        }
        self.is_connected.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Follower {
    /// What was said until now; [`Self::woken`] waits for more. Ask before reading, so that a hint which comes during the
    /// read is not missed.
    pub fn told(&mut self) -> Told {
        *self.told.borrow_and_update()
    }

    /// Waits until something was said since [`Self::told`].
    pub async fn woken(&mut self) {
        if self.told.changed().await.is_err() {
            // The hub keeps the sender as long as anybody follows.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followers = self.hub.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = followers.get_mut(&self.job_id) {
            watch.followers -= 1;
            if watch.followers == 0 {
                followers.remove(&self.job_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_hint_during_a_read_is_not_missed() {
        let hub = Hub::new();
        let (one, other) = (JobId::new(), JobId::new());
        let mut follower = hub.follow(one);
        assert_eq!(follower.told(), Told::default());
        hub.hint(Hint { job_id: other, seq: 9 });
        assert!(follower.woken().now_or_never().is_none());
        hub.hint(Hint { job_id: one, seq: 7 });
        hub.hint(Hint { job_id: one, seq: 6 });
        follower.woken().now_or_never().unwrap();
        assert_eq!(follower.told(), Told { seq: 7, changes: 0 });
        hub.changed(one);
        follower.woken().now_or_never().unwrap();
        assert_eq!(follower.told().changes, 1);
    }

    #[tokio::test]
    async fn a_job_that_nobody_follows_is_forgotten() {
        let hub = Hub::new();
        let job_id = JobId::new();
        let (first, second) = (hub.follow(job_id), hub.follow(job_id));
        drop(first);
        assert_eq!(hub.followed(), 1);
        drop(second);
        assert_eq!(hub.followed(), 0);
    }
}
