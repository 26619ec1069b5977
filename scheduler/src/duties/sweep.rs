//! Sweep: frees what the index keeps of jobs that have ended.
//!
//! A job that retries or waits keeps its places, and has no lease that would pass. When it is cancelled by somebody who
//! cannot tell Redis, nobody else would ever look at its entry, and its places would be taken for ever. All of these are
//! looked at within a lease time, as long as they are not more than some thousands; the rest of the index has no place, and
//! is looked at slowly.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::JobId;
use common::queue::{Among, Queue, Shard};
use common::service::{Duty, Report};
use common::store::Store;

/// Entries of one look. In the index most need no look at their row.
const BATCH: u32 = 2_000;

/// Most looks of one tick and shard at those that may have places.
const LOOKS: u32 = 10;

/// The duty.
#[derive(Debug)]
pub struct Sweep {
    store: Store,
    queue: Queue,
    cursors: Mutex<BTreeMap<(Shard, Among), u64>>,
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

    async fn sweep(&self, shard: Shard) -> anyhow::Result<u64> {
        let (mut freed, _) = self.look(shard, Among::All).await?;
        for _ in 0..LOOKS {
            let (more, is_last) = self.look(shard, Among::Unleased).await?;
            freed += more;
            if is_last {
                break;
            }
        }
        Ok(freed)
    }

    /// Looks at the next entries of a shard. Answers how many it freed, and whether these were the last.
    async fn look(&self, shard: Shard, among: Among) -> anyhow::Result<(u64, bool)> {
        let cursor = self.cursors().get(&(shard, among)).copied().unwrap_or(0);
        let (next, strays) = self.queue.strays(shard, among, cursor, BATCH).await?;
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
        self.cursors().insert((shard, among), next);
        Ok((freed, next == 0))
    }

    fn cursors(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Shard, Among), u64>> {
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
