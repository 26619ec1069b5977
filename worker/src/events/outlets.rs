//! Where all logs of a worker go, many at once: one script and one statement serve those that have something to write.
//!
//! A thousand answers of models that stream at once would else be tens of thousands of scripts a second, and a statement
//! for each of them every few seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::batch::{Batcher, Limits};
use common::ids::{JobId, TenantId, WorkerId};
use common::queue::{Append, Appended, Queue, Shard};
use common::store::events::Chunk;
use common::store::{Class, Store};
use futures_util::future::join_all;
use tokio_util::task::TaskTracker;

/// Logs of one script: some five milliseconds of Redis.
const APPENDS: Limits = Limits {
    batch_max: 256,
    bytes_max: 1024 * 1024,
    parallel: 2,
    company: 32,
    backlog: 4_096,
};

/// Chunks of one statement; each is 256 KiB before compression at most, as a rule.
const CHUNKS: Limits = Limits {
    batch_max: 128,
    bytes_max: 16 * 1024 * 1024,
    parallel: 2,
    company: 32,
    backlog: 4_096,
};

/// Appends in a batch from which the next waits as long as this one took, so that what is said meanwhile is joined: where
/// so many write, the machine is better used for something else than the smallest delay.
const MANY: usize = 64;

/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The way of logs to Redis and Postgres. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outlets {
    queue: Queue,
    appends: Batcher<Append, Option<Appended>>,
    chunks: Batcher<(Chunk, u32), Written>,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is committed.
    Yes,
    /// The attempt is not this worker's any more.
    Lost,
    /// Postgres is away, or refused it: try again.
    NotYet,
}

impl Outlets {
    /// Outlets for the attempts of one worker; what they write together is on `tracker`.
    pub fn spawn(worker_id: WorkerId, store: Store, queue: Queue, tracker: &TaskTracker) -> Self {
        let redis = queue.clone();
        let appends = Batcher::new(tracker, APPENDS, weigh, move |logs| {
            let redis = redis.clone();
            async move { append(&redis, logs).await }
        });
        let chunks = Batcher::new(
            tracker,
            CHUNKS,
            |(chunk, _): &(Chunk, u32)| chunk.bytes(),
            move |chunks| {
                let store = store.clone();
                async move { write(&store, worker_id, chunks).await }
            },
        );
        Self { queue, appends, chunks }
    }

    /// Appends to a live log; nothing while Redis is away.
    pub(super) async fn append(&self, log: Append) -> Option<Appended> {
        self.appends.call(log).await.ok().flatten()
    }

    /// Writes a chunk for good.
    pub(super) async fn write(&self, chunk: Chunk, attempt: u32) -> Written {
        self.chunks.call((chunk, attempt)).await.unwrap_or(Written::NotYet)
    }

    /// Drops the part of a live log that is written.
    pub(super) async fn trim(&self, tenant_id: TenantId, job_id: JobId, written: u64) {
        if let Err(error) = self.queue.trim(tenant_id, job_id, written).await {
            tracing::debug!(%error, %job_id, "the log's tail is not trimmed");
        }
    }
}

fn weigh(log: &Append) -> usize {
    log.events.iter().map(String::len).sum()
}

async fn append(queue: &Queue, logs: Vec<Append>) -> Vec<Option<Appended>> {
    let (began, count) = (Instant::now(), logs.len());
    let mut shards: BTreeMap<Shard, (Vec<usize>, Vec<Append>)> = BTreeMap::new();
    for (place, log) in logs.into_iter().enumerate() {
        let (places, logs) = shards.entry(queue.shard_of(log.tenant_id)).or_default();
        places.push(place);
        logs.push(log);
    }
    let mut outcomes = vec![None; count];
    let scripts = shards.iter().map(|(shard, (_, logs))| queue.append(*shard, logs));
    for ((places, _), codes) in shards.values().zip(join_all(scripts).await) {
        match codes {
            Ok(codes) => {
                for (place, code) in places.iter().zip(codes) {
                    if let Some(outcome) = outcomes.get_mut(*place) {
                        *outcome = Some(code);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "events wait for Redis"),
        }
    }
    if count >= MANY {
        tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
    }
    outcomes
}

async fn write(store: &Store, worker_id: WorkerId, chunks: Vec<(Chunk, u32)>) -> Vec<Written> {
    match store.append_chunks(worker_id, &chunks).await {
        Ok(written) => {
            let of = |(chunk, _): &(Chunk, u32)| {
                if written.contains(&chunk.job_id()) {
                    Written::Yes
                } else {
                    Written::Lost
                }
            };
            chunks.iter().map(of).collect()
        }
        Err(error) => {
            if error.class() == Class::Transient {
                tracing::debug!(%error, "chunks wait for Postgres");
            } else {
                tracing::error!(%error, "chunks cannot be written");
            }
            vec![Written::NotYet; chunks.len()]
        }
    }
}
