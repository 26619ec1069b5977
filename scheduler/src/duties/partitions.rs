//! Partitions: those of the coming days exist before the first row needs them, and old days are dropped.

use std::time::Duration;

use chrono::{DateTime, Days, Utc};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::retention::Dropped;

use super::Deps;

/// Longest time that everybody else waits behind a drop.
const PATIENCE: Duration = Duration::from_millis(200);

/// Keeps the daily partitions of jobs, attempts and events.
#[derive(Debug)]
pub(crate) struct Partitions {
    store: Store,
    ahead_days: u32,
    kept: Duration,
}

impl Partitions {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            ahead_days: deps.config.partitions.ahead_days,
            kept: deps.config.retention.jobs,
        }
    }

    /// Drops the oldest day that may go; answers whether there was one.
    async fn drop_one(&self, now: DateTime<Utc>) -> anyhow::Result<bool> {
        if self.kept.is_zero() {
            return Ok(false);
        }
        // A day is old when its last moment is.
        let before = (now - self.kept).date_naive();
        for day in self.store.partition_days(before).await? {
            match self.store.drop_partitions(day, PATIENCE).await? {
                Dropped::Yes => {
                    tracing::info!(%day, "dropped a day of jobs that is older than retention.jobs");
                    return Ok(true);
                }
                Dropped::Open => tracing::debug!(%day, "an old day still has open jobs"),
                Dropped::Busy => tracing::debug!(%day, "an old day is in use"),
            }
        }
        Ok(false)
    }
}

impl Duty for Partitions {
    fn name(&self) -> &'static str {
        "partitions"
    }

    fn interval(&self) -> Duration {
        Duration::from_mins(1)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let today = now.date_naive();
        let last = today
            .checked_add_days(Days::new(self.ahead_days.into()))
            .unwrap_or(today);
        // Yesterday too: an id made shortly before midnight may be written shortly after.
        let first = today.pred_opt().unwrap_or(today);
        let made = self.store.ensure_partitions(first, last).await?;
        let dropped = self.drop_one(now).await?;
        let stray = self.store.default_partition_rows().await?;
        ::metrics::gauge!("hothouse_partitions_default_rows").set(u32::try_from(stray).unwrap_or(u32::MAX));
        if stray > 0 {
            tracing::warn!(
                rows = stray,
                "jobs lie in the default partition: their day had no partition of its own"
            );
        }
        Ok(Report {
            changed: made + u64::from(dropped),
            more: dropped,
        })
    }
}
