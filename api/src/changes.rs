//! What those who follow a whole tenant are shown: jobs after their change, read once for all of them.
//!
//! Hints are of all tenants, and of every word of an answer. If each of those readers looked them up by itself, each would ask
//! Postgres for everybody's jobs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use common::ids::JobId;
use common::job::Job;
use common::store::Store;
use tokio::sync::broadcast::{self, Receiver};
use tokio_util::sync::CancellationToken;

/// Hints that may wait to be looked up; of more, some are missed.
const HINTS: usize = 4_096;
/// Batches that a reader may be behind; one that is further behind is told so.
const BATCHES: usize = 32;
/// Hints are looked up together: this long, or so many.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_MAX: usize = 500;

/// Something that those who follow a tenant are told.
#[derive(Clone, Debug)]
pub enum Change {
    /// Jobs of any tenant, of which something may have changed.
    Jobs(Arc<[Job]>),
    /// Some changes were missed.
    Missed,
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hinted {
    Job(JobId),
    Missed,
}

/// The changes of all jobs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes {
    hinted: broadcast::Sender<Hinted>,
    told: broadcast::Sender<Change>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            hinted: broadcast::channel(HINTS).0,
            told: broadcast::channel(BATCHES).0,
        }
    }
}

impl Changes {
    /// Everything from now on.
    pub fn follow(&self) -> Receiver<Change> {
        self.told.subscribe()
    }

    /// A job may have changed.
    pub fn hint(&self, job_id: JobId) {
        self.pass(Hinted::Job(job_id));
    }

    /// Hints may have been lost.
    pub fn miss(&self) {
        self.pass(Hinted::Missed);
    }

    fn pass(&self, hinted: Hinted) {
        if self.told.receiver_count() > 0 && self.hinted.send(hinted).is_err() {
            tracing::trace!("nobody looks changes up any more");
        }
    }

    /// Looks up what is hinted from this call on, until `stop`.
    pub fn run(self, store: Store, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        let mut hinted = self.hinted.subscribe();
        async move {
            loop {
                let batch = tokio::select! {
                    () = stop.cancelled() => return,
                    batch = Batch::next(&mut hinted) => batch,
                };
                self.tell(batch, &store).await;
            }
        }
    }

    async fn tell(&self, batch: Batch, store: &Store) {
        let Batch { ids, mut has_missed } = batch;
        let ids: Vec<JobId> = ids.into_iter().collect();
        let mut changes = Vec::new();
        match store.jobs(&ids).await {
            Ok(jobs) => changes.push(Change::Jobs(jobs.into())),
            Err(error) => {
                tracing::debug!(%error, "changed jobs cannot be read");
                has_missed = true;
            }
        }
        changes.extend(has_missed.then_some(Change::Missed));
        for change in changes {
            if self.told.send(change).is_err() {
                tracing::trace!("the last reader has just gone");
            }
        }
    }
}

/// What is looked up together.
#[derive(Debug, Default)]
struct Batch {
    ids: HashSet<JobId>,
    has_missed: bool,
}

impl Batch {
    /// The next hint and those that come right after it.
    async fn next(hinted: &mut Receiver<Hinted>) -> Self {
        // Who is too far behind has missed some.
        let mut next = async || hinted.recv().await.unwrap_or(Hinted::Missed);
        let mut batch = Self::default();
        batch.add(next().await);
        let collect = async {
            while batch.ids.len() < WINDOW_MAX {
                batch.add(next().await);
            }
        };
        // Ended by the window's time or its size, whichever comes first.
        drop(tokio::time::timeout(WINDOW, collect).await);
        batch
    }

    fn add(&mut self, hinted: Hinted) {
        match hinted {
            Hinted::Job(job_id) => drop(self.ids.insert(job_id)),
            Hinted::Missed => self.has_missed = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hints_of_one_moment_are_looked_up_together() {
        let changes = Changes::default();
        let mut hinted = changes.hinted.subscribe();
        let _reader = changes.follow();
        let (one, other) = (JobId::new(), JobId::new());
        for job_id in [one, one, other] {
            changes.hint(job_id);
        }
        let batch = Batch::next(&mut hinted).await;
        assert_eq!((batch.ids, batch.has_missed), (HashSet::from([one, other]), false));
        changes.hint(one);
        changes.miss();
        let batch = Batch::next(&mut hinted).await;
        assert_eq!((batch.ids, batch.has_missed), (HashSet::from([one]), true));
        for _ in 0..=HINTS {
            changes.hint(one);
        }
        assert!(Batch::next(&mut hinted).await.has_missed);
    }

    #[test]
    fn without_readers_nothing_is_looked_up() {
        let changes = Changes::default();
        let mut hinted = changes.hinted.subscribe();
        changes.hint(JobId::new());
        drop(changes.follow());
        changes.miss();
        assert!(hinted.try_recv().is_err());
    }
}
