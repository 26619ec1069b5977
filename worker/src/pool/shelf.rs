//! One environment's sandboxes: how many there are in which state, those that are warm, and the jobs that wait.
//!
//! A lock that is never held across an await; everything slow happens outside. Each sandbox is counted in exactly one
//! state, by the type that holds it: [`Creating`] while it starts, the shelf itself while it is warm, [`Leased`] while
//! a job has it, [`Retiring`] while it is destroyed.

mod arrivals;
mod image;
mod spare;
mod succession;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::TenantId;
use common::workspace::Owner;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::demand::Demand;
use super::held::{Creating, Leased, Phase, Retiring};
use super::plan::{self, Counts, Pace, Recent};
use super::spares::Spares;
use super::{Error, Fault};
use crate::claude::{Process, Recipe};
use crate::environment::Environment;
use crate::sandbox::Sandbox;

pub(super) use image::Image;
use succession::Resets;
pub(super) use succession::{Heritage, Succession};

/// A sandbox that said something so long ago is still awake, with all that is between it and the worker.
const AWAKE: Duration = Duration::from_millis(100);

/// A sandbox that answered.
#[derive(Debug)]
pub(super) struct Warm {
    pub(super) id: Uuid,
    pub(super) sandbox: Sandbox,
    /// Of which image it is.
    pub(super) image_id: Option<String>,
    /// When it became warm.
    pub(super) since: Instant,
    /// A process that rests in it.
    pub(super) resident: Option<Process>,
}

/// Whom a sandbox is kept for. Nobody else ever gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFor {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Who of the tenant.
    pub who: Who,
}

/// Who of a tenant a sandbox is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// The conversation or agent whose workspace it holds.
    Workspace(Owner),
    /// A user, by the name that the tenant gave; it was reset.
    User(String),
    /// An API key, for jobs that name no user; it was reset.
    Key(Uuid),
}

/// A sandbox between two uses.
#[derive(Debug)]
struct Kept {
    warm: Warm,
    owner: KeptFor,
    /// The version of the workspace in it; 0 for none.
    version: u64,
    since: Instant,
}

/// What a job that waits gets: a sandbox, or the reason why there will be none.
pub(super) type Delivery = Result<(Warm, Leased), Arc<Error>>;

/// The last failed start.
#[derive(Debug, Clone)]
pub struct LastError {
    /// When.
    pub at: DateTime<Utc>,
    /// Why.
    pub error: String,
    /// The same for a job's owner.
    pub told: String,
    /// Whose fault it was.
    pub fault: Fault,
}

#[derive(Debug, Default)]
struct State {
    // Oldest first.
    warm: VecDeque<Warm>,
    waiting: VecDeque<oneshot::Sender<Delivery>>,
    // The least recently used first.
    kept: VecDeque<Kept>,
    resets: Resets,
    // Without those that are warm, kept or waited for, which the lists above count.
    counts: Counts,
    recent: Recent,
    demand: Demand,
    has_started: bool,
    cold_starts: BTreeMap<&'static str, u64>,
    image: Image,
    last_error: Option<LastError>,
    spares: Spares,
    // The last failure, when trying again does not help.
    refusal: Option<Arc<Error>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) environment: Arc<Environment>,
    epoch: Instant,
    state: Mutex<State>,
    /// Told whenever room may have been made.
    pub(super) changed: Notify,
    /// Wakes refill.
    wake: Arc<Notify>,
}

impl Shelf {
    pub(super) fn new(environment: Arc<Environment>, wake: Arc<Notify>) -> Self {
        Self {
            environment,
            epoch: Instant::now(),
            state: Mutex::default(),
            changed: Notify::new(),
            wake,
        }
    }

    /// Takes a warm sandbox for a job: the oldest in which Claude Code was started in this way, else without it, else any.
    /// Refill may be held back by it for so long.
    pub(super) fn take(self: &Arc<Self>, recipe: Option<&Recipe>, held_back: Duration) -> Option<(Warm, Leased)> {
        self.note_check_out();
        let now = self.epoch.elapsed();
        let mut state = self.lock();
        state.demand.arrived(&self.environment.warm, held_back, now);
        let suits = |wanted: Option<&Recipe>| {
            let is_wanted = |warm: &Warm| warm.resident.as_ref().map(Process::recipe) == wanted;
            state.warm.iter().position(is_wanted)
        };
        let index = suits(recipe).or_else(|| suits(None)).unwrap_or(0);
        let warm = state.warm.remove(index)?;
        Some((warm, Leased::counted(self, &mut state.counts)))
    }

    /// When a job asked here last, since the pool was made.
    pub(super) fn last_check_out(&self) -> Option<Duration> {
        self.lock().recent.last_check_out
    }

    /// Rouses the one that the next job gets, if it is like most. While jobs come one after the other it is awake, and what
    /// they may get instead, one that is kept for them, is too.
    pub(super) fn rouse(&self) {
        let state = self.lock();
        let plain = state.warm.iter().find(|warm| warm.resident.is_none());
        if let Some(warm) = plain.or_else(|| state.warm.front())
            && warm.sandbox.silent_for() >= AWAKE
        {
            warm.sandbox.rouse();
        }
    }

    /// Keeps a sandbox for its owner.
    pub(super) fn keep(&self, warm: Warm, leased: Leased, owner: KeptFor, version: u64) {
        let since = Instant::now();
        self.lock().kept.push_back(Kept {
            warm,
            owner,
            version,
            since,
        });
        // Counted twice for a moment, and never not at all.
        drop(leased);
    }

    /// Asks for the next sandbox that becomes warm.
    pub(super) fn wait(self: &Arc<Self>) -> oneshot::Receiver<Delivery> {
        let (sender, receiver) = oneshot::channel();
        self.lock().waiting.push_back(sender);
        self.wake.notify_one();
        receiver
    }

    /// How many to start now: each is counted as being created from here on.
    pub(super) fn plan_starts(self: &Arc<Self>, pace: &Pace) -> (Vec<Creating>, Option<Instant>) {
        let now = self.epoch.elapsed();
        let mut state = self.lock();
        // What waits for Claude Code is made ready when nobody is about to begin.
        let warm = match state.spares_at().filter(|at| *at > now) {
            Some(_) => state.ready(&self.environment.warm, now),
            None => state.floor(&self.environment.warm, now),
        };
        let warm = &warm;
        let start = plan::start(counts(&mut state), state.recent, warm, pace, now);
        let creating = (0..start.count)
            .map(|_| Creating::counted(self, &mut state.counts))
            .collect();
        if count(state.warm.len()) + state.counts.creating >= warm.size {
            state.recent.short_since = None;
        }
        (creating, start.look_again.map(|at| self.epoch + at))
    }

    /// Room for one sandbox of a size of its own, if the ceiling leaves any.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Creating> {
        self.note_check_out();
        let mut state = self.lock();
        if counts(&mut state).total() >= self.environment.warm.max {
            return None;
        }
        Some(Creating::counted(self, &mut state.counts))
    }

    /// Takes off the one that was kept longest, or else the oldest warm one, to make room.
    pub(super) fn evict(self: &Arc<Self>) -> Option<(Warm, Retiring)> {
        let mut state = self.lock();
        let kept = state.kept.pop_front().map(|kept| kept.warm);
        let warm = kept.or_else(|| state.warm.pop_front())?;
        Some((warm, Retiring::counted(self, &mut state.counts)))
    }

    /// Takes those off that are dead, too old, of an older image, or idle beyond the floor; all of them when `everything` goes.
    pub(super) fn sweep(self: &Arc<Self>, everything: bool) -> Vec<(Warm, Retiring)> {
        let mut state = self.lock();
        let state = &mut *state;
        let now = self.epoch.elapsed();
        let mut gone = Vec::new();
        let (kept, dead): (Vec<_>, Vec<_>) = state
            .warm
            .drain(..)
            .partition(|warm| !everything && warm.sandbox.is_alive() && state.image.is_of(warm));
        state.warm = kept.into();
        gone.extend(dead);
        let since: Vec<_> = state.warm.iter().map(|warm| warm.since - self.epoch).collect();
        // From the back, so that the indices before stay right.
        let floor = state.floor(&self.environment.warm, now);
        for index in plan::retire(&since, &floor, now).into_iter().rev() {
            gone.extend(state.warm.remove(index));
        }
        gone.extend(self.sweep_kept(state, everything));
        gone.into_iter()
            .map(|warm| (warm, Retiring::counted(self, &mut state.counts)))
            .collect()
    }

    /// Those kept ones whose time is over, that are dead, or whose place somebody needs.
    fn sweep_kept(&self, state: &mut State, everything: bool) -> Vec<Warm> {
        let warm = &state.room_floor(&self.environment.warm, self.epoch.elapsed());
        let is_good = |kept: &Kept| {
            !everything
                && kept.warm.sandbox.is_alive()
                && state.image.is_of(&kept.warm)
                && kept.since.elapsed() < warm.keep
                && kept.warm.since.elapsed() < warm.age
        };
        let (good, gone): (Vec<_>, Vec<_>) = state.kept.drain(..).partition(is_good);
        state.kept = good.into();
        let evict = plan::evict(counts(state), warm) as usize;
        gone.into_iter()
            .chain(state.kept.drain(..evict.min(state.kept.len())))
            .map(|kept| kept.warm)
            .collect()
    }

    /// Remembers a failed start; when trying again cannot help, nobody waits for it any longer.
    pub(super) fn failed(&self, error: Error, at: DateTime<Utc>) {
        let mut state = self.lock();
        state.recent.failures = state.recent.failures.saturating_add(1);
        state.recent.last_failure = Some(self.epoch.elapsed());
        // On a full disk the engine fails in many ways, and most of their words do not say so.
        let disk = state.last_error.take().filter(|last| last.fault == Fault::Disk);
        let (told, fault) = match (disk, error.fault()) {
            (Some(last), Fault::Other) if error.is_transient() => (last.told, Fault::Disk),
            (_, fault) => (error.told(), fault),
        };
        state.last_error = Some(LastError {
            at,
            error: error.with_causes(),
            told,
            fault,
        });
        state.refusal = None;
        if error.is_transient() {
            return;
        }
        let error = Arc::new(error);
        state.refusal = Some(Arc::clone(&error));
        let waiting: Vec<_> = state.waiting.drain(..).collect();
        drop(state);
        for job in waiting {
            // A job that is gone needs no answer.
            drop(job.send(Err(Arc::clone(&error))));
        }
    }

    /// Why a job need not wait: starts are refused, and it is too early to see whether somebody has changed that.
    pub(super) fn refusal(&self, pace: &Pace) -> Option<Arc<Error>> {
        let state = self.lock();
        let retry_at = plan::retry_at(state.recent, pace)?;
        state.refusal.clone().filter(|_| self.epoch.elapsed() < retry_at)
    }

    /// The counts, how many jobs found nothing warm by the reason, and the last failure.
    pub(super) fn look(&self) -> (Counts, BTreeMap<&'static str, u64>, Option<LastError>) {
        let mut state = self.lock();
        (counts(&mut state), state.cold_starts.clone(), state.last_error.clone())
    }

    /// Whether starts fail at present.
    pub(super) fn is_failing(&self) -> bool {
        self.lock().recent.failures > 0
    }

    /// A start worked: the next one need not be careful. Hands out the job that waits longest, if it is to have it.
    pub(super) fn succeeded(&self) -> Option<oneshot::Sender<Delivery>> {
        let mut state = self.lock();
        state.has_started = true;
        state.recent.failures = 0;
        state.last_error = None;
        state.refusal = None;
        state.waiting.pop_front()
    }

    /// A sandbox of another environment started: what was the machine's fault is over.
    pub(super) fn machine_is_well(&self) {
        let mut state = self.lock();
        state.last_error = state.last_error.take().filter(|last| !last.fault.is_of_machine());
    }

    /// Puts a warm sandbox on the shelf.
    pub(super) fn put(&self, warm: Warm) {
        self.lock().warm.push_back(warm);
    }

    /// Counts a sandbox in.
    pub(super) fn count_in(self: &Arc<Self>, phase: Phase) {
        *phase.of(&mut self.lock().counts) += 1;
    }

    /// Counts a sandbox out, and tells those who wait for room.
    pub(super) fn count_out(&self, phase: Phase) {
        *phase.of(&mut self.lock().counts) -= 1;
        self.changed.notify_waiters();
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counts(state: &mut State) -> Counts {
    state.waiting.retain(|job| !job.is_closed());
    Counts {
        warm: count(state.warm.len()),
        kept: count(state.kept.len()),
        waiting: count(state.waiting.len()),
        ..state.counts
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
