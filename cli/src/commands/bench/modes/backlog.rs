//! Loading a queue with jobs that do nothing, by batches, as fast as they are accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::commands::bench::wire::{self, Connection};
use crate::output;

/// Jobs of a batch: the most that one call takes.
pub(super) const BATCH: u64 = 1_000;

/// What to load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) queue: &'a str,
    /// Submitters, each with one batch outstanding.
    pub(super) connections: u64,
    /// Jobs to stop after; whole batches.
    pub(super) jobs: u64,
    /// Time to stop after.
    pub(super) limit: Duration,
}

/// What was loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loaded {
    pub(super) jobs: u64,
    pub(super) took: Duration,
}

impl Loaded {
    /// Jobs a second.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub(super) fn rate(&self) -> f64 {
        self.jobs as f64 / self.took.as_secs_f64()
    }
}

impl Load<'_> {
    /// Submits, and counts what was accepted.
    ///
    /// # Errors
    /// When a batch is refused.
    pub(super) async fn run(&self, client: &Client) -> anyhow::Result<Loaded> {
        let job = json!({"kind": "noop", "queue": self.queue});
        let body = json!({"jobs": vec![job; usize::try_from(BATCH)?]}).to_string();
        let request = wire::request("POST", "/api/v1/jobs/batch", &client.raw_headers(), body.as_bytes());
        let request = Arc::new(request);
        let left = Arc::new(AtomicU64::new(self.jobs.div_ceil(BATCH)));
        let bar = output::bar(self.jobs, "loading");
        let began = Instant::now();
        let mut submitters = JoinSet::new();
        for _ in 0..self.connections {
            let (address, request, left) = (client.address()?, Arc::clone(&request), Arc::clone(&left));
            let (until, bar) = (began + self.limit, bar.clone());
            submitters.spawn(async move {
                let mut connection = Connection::open(&address).await?;
                let mut batches = 0;
                let take = |left: u64| left.checked_sub(1);
                while Instant::now() < until && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    let status = connection.exchange(&request).await?.status;
                    ensure!(status == 202, "a batch was answered with {status}");
                    batches += 1;
                    bar.inc(BATCH);
                }
                Ok(batches)
            });
        }
        let mut batches = 0_u64;
        while let Some(done) = submitters.join_next().await {
            batches += done??;
        }
        bar.finish_and_clear();
        Ok(Loaded {
            jobs: batches * BATCH,
            took: began.elapsed(),
        })
    }
}
