//! How long a duty waits until its next tick, where the tick before it finds that out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A pause in whole milliseconds, set through a shared reference.
#[derive(Debug)]
pub(super) struct Pause(AtomicU64);

impl Pause {
    pub(super) fn new(pause: Duration) -> Self {
        Self(AtomicU64::new(millis(pause)))
    }

    pub(super) fn set(&self, pause: Duration) {
        self.0.store(millis(pause), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Rounded up: a tick one fraction too early finds nothing due, and is lost.
fn millis(pause: Duration) -> u64 {
    u64::try_from(pause.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
