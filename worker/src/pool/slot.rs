//! A sandbox in use.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::Inner;
use super::cold::ColdStart;
use super::held::Leased;
use super::shelf::{KeptFor, Succession, Warm};
use crate::claude::{Process, Recipe};
use crate::sandbox::Sandbox;

/// How long a reset may take; another sandbox starts in less.
const RESET_MAX: Duration = Duration::from_secs(5);

/// What a kept sandbox may run on beyond the time that it is kept: until the sweep has come round.
const LEASE_REST: Duration = Duration::from_secs(10);

/// A sandbox that one job has, from check-out to [`Slot::retire`], [`Slot::keep`] or [`Slot::recycle`].
///
/// It is not `Clone`, and one that is dropped without being retired or kept says so in the log, is counted, and is retired
/// all the same. A used sandbox never serves somebody else: it may be kept, for those who used it alone.
#[derive(Debug)]
pub struct Slot {
    pool: Arc<Inner>,
    // None once settled.
    held: Option<(Warm, Leased)>,
    cold: Option<ColdStart>,
}

impl Slot {
    pub(super) fn new(pool: &Arc<Inner>, warm: Warm, leased: Leased, cold: Option<ColdStart>) -> Self {
        Self {
            pool: Arc::clone(pool),
            held: Some((warm, leased)),
            cold,
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

    /// Takes the process that was started in it, or stayed in it, before.
    pub fn take_resident(&mut self) -> Option<Process> {
        self.held.as_mut()?.0.resident.take()
    }

    /// Leaves a process in it, which rests, for whoever it is kept for.
    pub fn put_resident(&mut self, resident: Process) {
        if let Some((warm, _)) = &mut self.held {
            warm.resident = Some(resident);
        }
    }

    /// Makes it fit for a job of this recipe, or of none: a process of another goes, with everything that it left behind.
    /// False when something of it is left.
    pub(super) async fn suits(&mut self, recipe: Option<&Recipe>) -> bool {
        match &self.held().0.resident {
            None => true,
            Some(resident) if Some(resident.recipe()) == recipe => true,
            Some(_) => {
                drop(self.take_resident());
                vacate(self.sandbox()).await
            }
        }
    }

    /// Whether it was ready when the job came; otherwise the job waited for its start.
    pub fn is_warm(&self) -> bool {
        self.cold.is_none()
    }

    /// Why nothing was ready, for the job's owner; none when something was.
    pub fn why_cold(&self) -> Option<&'static str> {
        self.cold.map(ColdStart::told)
    }

    /// Gives the sandbox up. Its processes are killed at once; removing what is left goes on behind.
    pub fn retire(mut self) {
        self.settle();
    }

    /// Keeps the sandbox, as it is but without its processes other than a resident, for the turn that follows; `version` is
    /// that of the workspace in it. One whose environment keeps none, or goes on with a newer image, or that does not answer, is
    /// retired. Answers for how long it is kept.
    pub async fn keep(self, owner: KeptFor, version: u64) -> Option<Duration> {
        let keep = self.held().1.shelf().environment.warm.keep;
        let has_resident = self.held().0.resident.is_some();
        // Nobody renews its lease while it is kept.
        let stopped = async |sandbox: &Sandbox| {
            sandbox.extend_lease(keep.saturating_add(LEASE_REST)).await?;
            // Beside a process that rests nothing runs.
            if has_resident { Ok(()) } else { sandbox.kill_all().await }
        };
        let (warm, leased) = self.held();
        let may_stay = !keep.is_zero() && !self.pool.stop.is_cancelled() && leased.shelf().is_current(warm);
        let is_fit = may_stay && stopped(self.sandbox()).await.is_ok();
        if !is_fit {
            self.retire();
            return None;
        }
        self.shelve(owner, version);
        Some(keep)
    }

    /// Resets the sandbox behind, and hands it to a job of this owner that waits for it, or keeps it for this owner alone; one
    /// in which something is left is destroyed.
    pub fn recycle(self, owner: KeptFor) {
        let shelf = Arc::clone(self.held().1.shelf());
        let keep = shelf.environment.warm.keep;
        if keep.is_zero() {
            return self.retire();
        }
        let resetting = shelf.resetting(&owner);
        let tasks = self.pool.tasks.clone();
        tasks.spawn(async move {
            let sandbox = self.sandbox();
            let reset = async {
                // Nobody renews it while it is kept, and nothing runs in it then.
                sandbox.extend_lease(keep.saturating_add(LEASE_REST)).await?;
                sandbox.reset().await
            };
            let outcome = match tokio::time::timeout(RESET_MAX, reset).await {
                Ok(Ok(())) => "clean",
                Ok(Err(error)) => {
                    tracing::info!(sandbox_id = %self.id(), %error, "a sandbox could not be reset: it is destroyed");
                    "dirty"
                }
                Err(_elapsed) => "slow",
            };
            metrics::counter!("hothouse_sandbox_resets_total", "outcome" => outcome).increment(1);
            if outcome == "clean" {
                self.hand_on(owner);
            } else {
                self.retire();
            }
            drop(resetting);
        });
    }

    /// Gives a sandbox that was reset to whoever is next.
    fn hand_on(self, owner: KeptFor) {
        let mut slot = self;
        let shelf = Arc::clone(slot.held().1.shelf());
        loop {
            match shelf.succession(&owner, &slot.held().0) {
                _ if slot.pool.stop.is_cancelled() => return slot.retire(),
                Succession::Nobody => return slot.retire(),
                Succession::Heir(job) => match job.send(slot) {
                    Ok(()) => return,
                    // The job is gone: on to the next, with the same sandbox.
                    Err(back) => slot = back,
                },
                Succession::Shelf => return slot.shelve(owner, 0),
            }
        }
    }

    fn shelve(mut self, owner: KeptFor, version: u64) {
        if let Some((warm, leased)) = self.held.take() {
            let shelf = Arc::clone(leased.shelf());
            shelf.keep(warm, leased, owner, version);
            self.pool.wake.notify_one();
        }
    }

    fn held(&self) -> &(Warm, Leased) {
        self.held
            .as_ref()
            .expect("only retire, shelve and drop take it, and each ends the slot")
    }

    fn settle(&mut self) {
        if let Some((warm, leased)) = self.held.take() {
            let retiring = leased.retire();
            self.pool.destroy(warm.id, Some(warm.sandbox), retiring);
        }
    }
}

/// Empties a sandbox that no job has had. Whether nothing is left.
pub(super) async fn vacate(sandbox: &Sandbox) -> bool {
    matches!(tokio::time::timeout(RESET_MAX, sandbox.reset()).await, Ok(Ok(())))
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
