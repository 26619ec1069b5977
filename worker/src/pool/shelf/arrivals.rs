//! What a shelf knows of the jobs that come, and of those that are about to.

use std::time::Duration;

use super::super::cold::ColdStart;
use super::{Shelf, counts};

impl Shelf {
    /// Remembers how long a start took.
    pub(in crate::pool) fn note_start(&self, took: Duration) {
        self.lock().demand.started(took);
    }

    /// Hears how many schedules will ask for within `lasting`.
    pub(in crate::pool) fn expect(&self, count: u32, lasting: Duration) {
        let until = self.epoch.elapsed() + lasting;
        self.lock().demand.expect(count, until);
    }

    /// How many it aims to have ready.
    pub(in crate::pool) fn aim(&self) -> u32 {
        self.lock().floor(&self.environment.warm, self.epoch.elapsed()).size
    }

    pub(super) fn note_check_out(&self) {
        let now = self.epoch.elapsed();
        let mut state = self.lock();
        state.recent.last_check_out = Some(now);
        state.recent.short_since.get_or_insert(now);
        self.wake.notify_one();
    }

    /// Counts a job that found nothing warm.
    pub(in crate::pool) fn note_cold_start(&self, reason: ColdStart) {
        *self.lock().cold_starts.entry(reason.as_str()).or_default() += 1;
    }

    /// Why nothing is warm.
    pub(in crate::pool) fn why_empty(&self) -> ColdStart {
        let mut state = self.lock();
        let counts = counts(&mut state);
        if state.recent.failures > 0 {
            ColdStart::Failing
        } else if !state.has_started {
            ColdStart::Starting
        } else if counts.leased + counts.retiring >= self.environment.warm.max {
            ColdStart::Ceiling
        } else {
            ColdStart::Burst
        }
    }
}
