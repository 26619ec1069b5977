//! Sweep: frees what the index keeps of jobs that have ended.
//!
//! A job that retries or waits keeps its places, and has no lease that would pass. When it is cancelled by somebody who
//! cannot tell Redis, nobody else would ever look at its entry, and its places would be taken for ever.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::JobId;
use common::queue::{Queue, Shard};
use common::service::{Duty, Report};
use common::store::Store;

/// Index entries of one tick and shard. Most need no look at their row.
const BATCH: u32 = 2_000;

/// The duty.
#[derive(Debug)]
pub struct Sweep {
    store: Store,
    queue: Queue,
    cursors: Mutex<BTreeMap<Shard, u64>>,
}

impl Sweep {
    /// A duty that begins at the start of each index.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self {
            store,
            queue,
            cursors: Mutex::default(),
        }
    }

    /// Looks at the next entries of a shard. Answers how many it freed.
    async fn sweep(&self, shard: Shard) -> anyhow::Result<u64> {
        let cursor = self.cursors().get(&shard).copied().unwrap_or(0);
        let (next, strays) = self.queue.strays(shard, cursor, BATCH).await?;
        let mut freed = 0;
        if !strays.is_empty() {
            let open: Vec<JobId> = self.store.still_open(&strays).await?;
            let ended: Vec<(JobId, u64)> = strays
                .into_iter()
                .filter(|id| !open.contains(id))
                .map(|id| (id, 0))
                .collect();
            self.queue.forget(shard, &ended).await?;
            freed = u64::try_from(ended.len()).unwrap_or(u64::MAX);
        }
        self.cursors().insert(shard, next);
        Ok(freed)
    }

    fn cursors(&self) -> std::sync::MutexGuard<'_, BTreeMap<Shard, u64>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Duty for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn tick(&self, _now: DateTime<Utc>) -> anyhow::Result<Report> {
        let mut changed = 0;
        for shard in self.queue.shards() {
            changed += self.sweep(shard).await?;
        }
        Ok(Report { changed, more: false })
    }
}
