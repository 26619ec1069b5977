//! A sandbox in use.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::Inner;
use super::held::Leased;
use super::shelf::Warm;
use crate::sandbox::Sandbox;

/// A sandbox that one job has, from check-out to [`Slot::retire`].
///
/// It is not `Clone`, and one that is dropped without being retired says so in the log, is counted, and is retired
/// all the same: a sandbox never goes back to the shelf, because nobody can prove what a job left in it.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<Inner>,
    // None once settled.
    held: Option<(Warm, Leased)>,
    is_warm: bool,
}

impl Slot {
    pub(super) fn new(pool: &Arc<Inner>, warm: Warm, leased: Leased, is_warm: bool) -> Self {
        Self {
            pool: Arc::clone(pool),
            held: Some((warm, leased)),
            is_warm,
        }
    }

    /// The sandbox's id, by which its container is found.
    pub fn id(&self) -> Uuid {
        self.held().0.id
    }

    /// The sandbox.
    pub fn sandbox(&self) -> &Sandbox {
        &self.held().0.sandbox
    }

    /// The environment it is of.
    pub fn environment(&self) -> &str {
        &self.held().1.shelf().environment.name
    }

    /// Whether it was ready when the job came; otherwise the job waited for its start.
    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    /// Gives the sandbox up. Its processes are killed at once; removing what is left goes on behind.
    pub fn retire(mut self) {
        self.settle();
    }

    /// How long ago it became warm.
    pub(super) fn warm_for(&self) -> Duration {
        self.held().0.since.elapsed()
    }

    fn held(&self) -> &(Warm, Leased) {
        self.held
            .as_ref()
            .expect("only retire and drop take it, and both end the slot")
    }

    fn settle(&mut self) {
        if let Some((warm, leased)) = self.held.take() {
            let retiring = leased.retire();
            self.pool.destroy(warm.id, Some(warm.sandbox), retiring);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((warm, _)) = &self.held {
            tracing::warn!(sandbox_id = %warm.id, "a slot was dropped and not retired");
            metrics::counter!("hothouse_sandbox_unsettled_total").increment(1);
        }
        self.settle();
    }
}
