//! What the death of a sandbox says about the others.
//!
//! An engine that is stopped closes its socket and then ends its containers, not all at once. Who finds a warm sandbox alive
//! in between gets one that is dead a moment later, and a job has lost a try for nothing. So after a death the engine is asked
//! for a while before a sandbox is handed out. One that is slow to answer is believed: a socket that is closed says so at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::driver::SandboxDriver;

/// How long a death is remembered. Init ends as soon as it is told to, so an engine that stops has ended them all before.
const REMEMBERED: Duration = Duration::from_secs(5);

/// How long a job waits for what the engine says.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// When a sandbox was last found to have died by itself.
#[derive(Debug, Default)]
pub(super) struct Suspicion(Mutex<Option<Instant>>);

impl Suspicion {
    /// A sandbox was found dead.
    pub(super) fn raise(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Whether sandboxes that look well may be handed out.
    pub(super) async fn is_unfounded(&self, driver: &dyn SandboxDriver) -> bool {
        let died_at = *self.lock();
        if died_at.is_none_or(|at| at.elapsed() > REMEMBERED) {
            return true;
        }
        !matches!(timeout(ANSWER_MAX, driver.ping()).await, Ok(Err(_)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
