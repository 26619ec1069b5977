//! Promote: scheduled and retrying jobs become queued when their time has come, and are dispatched.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::queue::{Dispatch, Queue};
use common::service::{Duty, Report};
use common::store::Store;
use common::turn;
use tokio::sync::Notify;

use super::pause::Pause;
use super::stop::stop;
use super::wakes::Wakes;

/// Most jobs of one tick.
const BATCH: u32 = 1_000;

/// Longest time between two looks. What becomes due in less than half as much again is told by Postgres, so this counts only
/// when its word was lost.
const LOOK: Duration = Duration::from_secs(10);

/// Time between two looks while somebody else holds what is due.
const LOCKED: Duration = Duration::from_millis(50);

/// The duty.
#[derive(Debug)]
pub struct Promote {
    store: Store,
    queue: Queue,
    woken: Arc<Notify>,
    /// How long until something is due, as far as the last tick knew.
    pause: Pause,
}

impl Promote {
    /// The duty over these parts.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self {
            store,
            queue,
            woken: Arc::default(),
            pause: Pause::new(LOOK),
        }
    }

    /// The same, which hears of what will be due soon.
    pub(super) fn woken_by(self, wakes: &Wakes) -> Self {
        let woken = Arc::clone(&wakes.jobs);
        Self { woken, ..self }
    }

    /// Queues what is due.
    async fn promote(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let promoted = self.store.promote(now, BATCH).await?;
        let dispatches: Vec<Dispatch> = promoted.admitted().map(Dispatch::from_job).collect();
        if let Err(error) = self.queue.dispatch(&dispatches).await {
            tracing::warn!(%error, jobs = dispatches.len(), "promoted jobs wait for redispatch");
        }
        let superseded = &promoted.decided.superseded;
        stop(self.name(), (&self.store, &self.queue), superseded, now).await?;
        turn::dispatch_next(&self.store, &self.queue, &promoted.decided.rejected).await;
        let changed = u64::try_from(promoted.jobs.len()).unwrap_or(u64::MAX);
        Ok(Report {
            changed,
            more: changed == u64::from(BATCH),
        })
    }
}

impl Duty for Promote {
    fn name(&self) -> &'static str {
        "promote"
    }

    fn interval(&self) -> Duration {
        self.pause.get().clamp(Duration::from_millis(1), LOOK)
    }

    async fn woken(&self) {
        self.woken.notified().await;
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        self.pause.set(LOOK);
        let Some(next) = self.store.next_due_at().await? else {
            return Ok(Report::default());
        };
        if let Some(wait) = (next - now).to_std().ok().filter(|wait| !wait.is_zero()) {
            self.pause.set(wait);
            return Ok(Report::default());
        }
        let report = self.promote(now).await?;
        // What is due next is not known, and need not be while the batches are full.
        let pause = if report.changed == 0 { LOCKED } else { Duration::ZERO };
        self.pause.set(pause);
        Ok(report)
    }
}
