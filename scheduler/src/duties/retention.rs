//! Retention: rows that are forgotten one by one. Whole days of jobs are dropped by [`super::partitions`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::service::{Duty, Report};
use common::store::Store;

use super::Deps;
use crate::config;

/// Most rows that one tick deletes from a table.
const BATCH: u32 = 5_000;

/// Deletes old idempotency keys, workers that are long gone, and pauses of keys that have ended.
#[derive(Debug)]
pub(crate) struct Retention {
    store: Store,
    settings: config::Retention,
}

impl Retention {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            settings: deps.config.retention,
        }
    }
}

impl Duty for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn interval(&self) -> Duration {
        Duration::from_mins(1)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let keys = self
            .store
            .delete_idempotency_keys(now - self.settings.idempotency_keys, BATCH)
            .await?;
        let workers = self.store.delete_workers(now - self.settings.workers, BATCH).await?;
        let pauses = self.store.delete_key_pauses(now, BATCH).await?;
        let holds = self.store.delete_budget_holds(now, BATCH).await?;
        Ok(Report {
            changed: keys + workers + pauses + holds,
            more: [keys, workers, pauses, holds].contains(&u64::from(BATCH)),
        })
    }
}
