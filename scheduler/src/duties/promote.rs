//! Promote: scheduled and retrying jobs become queued when their time has come, and are dispatched.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::queue::{Dispatch, Queue};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::admit::Decided;

/// Most jobs of one tick.
const BATCH: u32 = 1_000;

/// The duty.
#[derive(Debug)]
pub struct Promote {
    store: Store,
    queue: Queue,
}

impl Promote {
    /// The duty over these parts.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self { store, queue }
    }
}

impl Duty for Promote {
    fn name(&self) -> &'static str {
        "promote"
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(200)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let jobs = self.store.promote(now, BATCH).await?;
        if jobs.is_empty() {
            return Ok(Report::default());
        }
        let mut dispatches = Vec::with_capacity(jobs.len());
        for job in &jobs {
            // A retry has been let in before.
            let decided = if job.attempt == 0 {
                self.store.admit_promoted(job, now).await?
            } else {
                Decided::default()
            };
            super::stop::stop(&self.store, &self.queue, &decided.superseded, now).await?;
            if decided.rejected.is_empty() {
                dispatches.push(Dispatch::from_job(job));
            }
        }
        if let Err(error) = self.queue.dispatch(&dispatches).await {
            tracing::warn!(%error, jobs = jobs.len(), "promoted jobs wait for redispatch");
        }
        let changed = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
        Ok(Report {
            changed,
            more: changed == u64::from(BATCH),
        })
    }
}
