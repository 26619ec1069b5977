//! Orphans: cancels the open children of jobs that have ended, where whoever ended them did not.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::cancel::Canceller;
use common::clock::Clock;
use common::service::{Duty, Report};
use common::store::Store;

use super::Deps;

/// Parents of one tick.
const BATCH: u32 = 100;

pub(super) struct Orphans {
    store: Store,
    canceller: Canceller,
    clock: Clock,
}

impl Orphans {
    pub(super) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            canceller: Canceller::new(deps.store.clone(), deps.queue.clone()),
            clock: deps.clock.clone(),
        }
    }
}

impl Duty for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn tick(&self, _now: DateTime<Utc>) -> anyhow::Result<Report> {
        let orphaned = self.store.orphaned(BATCH).await?;
        let more = orphaned.len() >= BATCH as usize;
        let mut changed = 0;
        for of in orphaned {
            changed += self.canceller.orphans(of, &self.clock).await?;
        }
        Ok(Report {
            changed,
            more: more || changed > 0,
        })
    }
}
