//! Outcomes: what became of the jobs of schedules is written beside their due times, where it outlives the jobs, and a
//! schedule whose jobs fail again and again is paused.
//!
//! Firing looks at the jobs of a schedule that depends on them by itself; this notices the rest, and the last ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::{JobId, ScheduleId};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::outcomes::Place;
use tokio::sync::Notify;
use uuid::Uuid;

use super::Deps;
use super::wakes::Wakes;

/// Due times of one tick.
const PAGE: u32 = 2_000;

/// Time between two looks while jobs of schedules are open, and while none is.
const LOOK: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);

const BEGIN: Place = (ScheduleId(Uuid::nil()), JobId(Uuid::nil()));

pub(super) struct Outcomes {
    store: Store,
    place: Mutex<Place>,
    is_idle: AtomicBool,
    fired: Arc<Notify>,
}

impl Outcomes {
    pub(super) fn new(deps: &Deps, wakes: &Wakes) -> Self {
        Self {
            store: deps.store.clone(),
            place: Mutex::new(BEGIN),
            is_idle: AtomicBool::new(true),
            fired: Arc::clone(&wakes.fired),
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
        if self.is_idle.load(Ordering::Relaxed) {
            IDLE
        } else {
            LOOK
        }
    }

    /// The first jobs after an idle time; later ones are looked at with the others.
    async fn woken(&self) {
        if self.is_idle.load(Ordering::Relaxed) {
            self.fired.notified().await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    async fn tick(&self, _now: DateTime<Utc>) -> anyhow::Result<Report> {
        let after = *self.place();
        let noted = self.store.note_outcomes(after, PAGE).await?;
        *self.place() = noted.next.unwrap_or(BEGIN);
        self.is_idle.store(noted.open == 0, Ordering::Relaxed);
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
