//! Outcomes: what became of the jobs of schedules is written beside their due times, where it outlives the jobs, and a
//! schedule whose jobs fail again and again is paused.
//!
//! Firing looks at the jobs of a schedule that depends on them by itself; this notices the rest, and the last ones.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::{JobId, ScheduleId};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::outcomes::Place;
use uuid::Uuid;

use super::Deps;

/// Due times of one tick.
const PAGE: u32 = 2_000;

const BEGIN: Place = (ScheduleId(Uuid::nil()), JobId(Uuid::nil()));

pub(super) struct Outcomes {
    store: Store,
    place: Mutex<Place>,
}

impl Outcomes {
    pub(super) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            place: Mutex::new(BEGIN),
        }
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Duty for Outcomes {
    fn name(&self) -> &'static str {
        "outcomes"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    async fn tick(&self, _now: DateTime<Utc>) -> anyhow::Result<Report> {
        let after = *self.place();
        let noted = self.store.note_outcomes(after, PAGE).await?;
        *self.place() = noted.next.unwrap_or(BEGIN);
        for schedule_id in &noted.paused {
            tracing::warn!(%schedule_id, "paused: its jobs failed too often in a row");
        }
        Ok(Report {
            changed: noted.ended,
            // Jobs that run on are no reason to hurry.
            more: noted.next.is_some() && noted.ended > u64::from(PAGE / 4),
        })
    }
}
