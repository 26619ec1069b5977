//! Orphans: cancels the open children of jobs that have ended, where whoever ended them did not.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::cancel::Canceller;
use common::clock::Clock;
use common::service::{Duty, Report};
use common::store::Store;
use tokio::sync::Notify;

use super::Deps;
use super::apart::apart;
use super::wakes::Wakes;

/// Parents of one tick.
const BATCH: u32 = 100;

pub(super) struct Orphans {
    store: Store,
    canceller: Canceller,
    clock: Clock,
    woken: Arc<Notify>,
}

impl Orphans {
    pub(super) fn new(deps: &Deps, wakes: &Wakes) -> Self {
        Self {
            store: deps.store.clone(),
            canceller: Canceller::new(deps.store.clone(), deps.queue.clone()),
            clock: deps.clock.clone(),
            woken: Arc::clone(&wakes.orphans),
        }
    }
}

impl Duty for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn woken(&self) {
        self.woken.notified().await;
    }

    async fn tick(&self, _now: DateTime<Utc>) -> anyhow::Result<Report> {
        let orphaned = self.store.orphaned(BATCH).await?;
        let more = orphaned.len() >= BATCH as usize;
        let (mut changed, mut passed_over) = (0, 0);
        for of in orphaned {
            let cancelled = self.canceller.orphans(of, &self.clock).await.map_err(Into::into);
            match apart(self.name(), of.parent_id, cancelled)? {
                Some(children) => changed += children,
                None => passed_over += 1,
            }
        }
        // What is passed over is found again each time.
        Ok(Report {
            changed,
            more: (more && passed_over < BATCH) || changed > 0,
        })
    }
}
