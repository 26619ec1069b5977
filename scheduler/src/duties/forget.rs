//! Forgetting: removes what was said in deleted conversations, once their last turn has stopped.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::service::{Duty, Report};
use common::store::Store;

use super::Deps;
use super::apart::apart;

/// Conversations of one tick.
const BATCH: u32 = 100;

#[derive(Debug)]
pub(super) struct Forget {
    store: Store,
}

impl Forget {
    pub(super) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
        }
    }
}

impl Duty for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let found = self.store.unforgotten_conversations(BATCH).await?;
        let more = found.len() >= BATCH as usize;
        let mut changed = 0;
        for id in found {
            let forgotten = self.store.forget_conversation(id, now).await.map_err(Into::into);
            changed += u64::from(apart(self.name(), id, forgotten)? == Some(true));
        }
        // What is passed over is found again each time.
        Ok(Report {
            changed,
            more: more && changed > 0,
        })
    }
}
