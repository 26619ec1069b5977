//! Artifacts: deleted with the day of jobs that kept them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::JobId;
use common::objects::Objects;
use common::service::{Duty, Report};
use common::store::Store;
use uuid::{NoContext, Timestamp, Uuid};

/// Artifacts that one tick deletes.
const BATCH: usize = 500;

/// Deletes artifacts whose job's day is older than `retention.jobs` and has been dropped.
#[derive(Debug)]
pub struct Artifacts {
    store: Store,
    objects: Objects,
    kept: Duration,
}

impl Artifacts {
    /// Jobs are kept for `kept`; zero keeps them for ever.
    pub fn new(store: Store, objects: Objects, kept: Duration) -> Self {
        Self { store, objects, kept }
    }
}

impl Duty for Artifacts {
    fn name(&self) -> &'static str {
        "artifacts"
    }

    fn interval(&self) -> Duration {
        Duration::from_mins(10)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        if self.kept.is_zero() || !self.objects.is_configured() {
            return Ok(Report::default());
        }
        let before = (now - self.kept).date_naive();
        // A day that could not be dropped stays with all that is before the days after it.
        let first_kept = self
            .store
            .partition_days(before)
            .await?
            .first()
            .copied()
            .unwrap_or(before);
        let midnight = first_kept.and_time(chrono::NaiveTime::MIN).and_utc().timestamp();
        let midnight = Timestamp::from_unix(NoContext, u64::try_from(midnight).unwrap_or(0), 0);
        // The lowest id of that moment: its first 48 bits are the time.
        let lowest = Uuid::new_v7(midnight).as_u128() >> 80 << 80;
        let found = self
            .objects
            .artifacts_before(JobId(Uuid::from_u128(lowest)), BATCH)
            .await?;
        for (_, key) in &found {
            self.objects.delete(key).await?;
        }
        Ok(Report {
            changed: found.len() as u64,
            more: found.len() >= BATCH,
        })
    }
}
