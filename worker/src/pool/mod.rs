//! The warm pool: sandboxes that are started before a job comes.
//!
//! A sandbox goes `creating → warm → leased → retired`: one job, one sandbox. Between two uses by the same conversation,
//! or by the same user where the environment says so, it may be *kept*; it never serves anybody else. A check-out is a pop
//! from memory. When nothing is warm the job waits for the next start, counted with its reason as a cold start; it never
//! fails because an engine restarts, only when that takes longer than its time.
//!
//! # Invariants
//! - An environment never has more sandboxes than its ceiling, whatever state they are in.
//! - Every sandbox that was started is destroyed: by its slot, by refill, at the end of the pool, or by the reaper.
//!
//! # Not here
//! The decisions are [`plan`], pure; a sandbox's own doing is [`crate::sandbox`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::clock::Clock;
use common::lifecycle::Lifecycle;
use common::store::sandboxes::Sandboxes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::claude::Recipe;
use crate::driver::{Profile, SandboxDriver};
use crate::environment::Environments;
use crate::sandbox::{self, Sandbox};

mod asks;
mod check_out;
mod cold;
mod demand;
mod error;
mod held;
mod ownerless;
mod plan;
mod proof;
mod reaper;
mod refill;
mod rollover;
mod shelf;
mod slot;
mod spares;
mod suspicion;
mod throttle;

pub use asks::{Asks, IsAlive, IsThere};
pub use error::{Error, Fault};
pub use reaper::Report;
pub use shelf::{KeptFor, LastError, Who};
pub use slot::Slot;

use held::{Creating, Retiring};
use plan::Pace;
use shelf::{Shelf, Warm};
use suspicion::Suspicion;
use throttle::Throttle;

/// How the pool works, the same for all environments.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The worker whose sandboxes these are.
    pub worker_id: Uuid,
    /// The most that may start at once. How many do is measured: the engine's rate falls when they are too many.
    pub starts_max: usize,
    /// How long a start may take until the sandbox answers.
    pub start_timeout: Duration,
    /// How long a job waits for a sandbox.
    pub check_out_timeout: Duration,
    /// How long no job must have come before the floor is filled again; a tenfold wait is the most.
    pub quiet: Duration,
    /// The longest delay between failing starts.
    pub backoff_max: Duration,
    /// How often sandboxes of dead workers are looked for.
    pub cleanup_interval: Duration,
    /// What is asked of each init. Bubblewrap without root cannot give jobs a user of their own.
    pub sandbox: sandbox::Settings,
}

impl Settings {
    /// The defaults for a worker.
    pub fn new(worker_id: Uuid) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            worker_id,
            starts_max: 2 * processors,
            start_timeout: Duration::from_mins(1),
            check_out_timeout: Duration::from_mins(1),
            quiet: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            cleanup_interval: Duration::from_hours(1),
            sandbox: sandbox::Settings {
                must_have_own_uid: true,
                ..sandbox::Settings::default()
            },
        }
    }
}

/// One environment's state, for people and metrics.
#[derive(Debug, Clone)]
pub struct EnvironmentStatus {
    /// Its name.
    pub name: String,
    /// The image it starts.
    pub image: String,
    /// What the image's name stood for when it was looked at last.
    pub image_id: Option<String>,
    /// How many it aims to have ready: the floor, or more when jobs came or schedules are about to fire.
    pub aim: u32,
    /// Sandboxes that are ready.
    pub warm: u32,
    /// In use.
    pub leased: u32,
    /// Kept for whoever used them last.
    pub kept: u32,
    /// Being started.
    pub creating: u32,
    /// Being destroyed.
    pub retiring: u32,
    /// Of those that are ready, how many have Claude Code started and waiting.
    pub spares: u32,
    /// Jobs that wait for one.
    pub waiting: u32,
    /// How many jobs found nothing warm since the pool was made, by the reason.
    pub cold_starts: BTreeMap<&'static str, u64>,
    /// The last failed start, when none has succeeded since.
    pub last_error: Option<LastError>,
}

/// The warm pool of a worker. Cheap to clone; clones are the same pool.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

pub(crate) struct Inner {
    driver: Arc<dyn SandboxDriver>,
    shelves: BTreeMap<String, Arc<Shelf>>,
    worker_id: Uuid,
    start_timeout: Duration,
    check_out_timeout: Duration,
    sandbox: sandbox::Settings,
    pace: Pace,
    starts: Throttle,
    suspicion: Suspicion,
    asks: Asks,
    clock: Clock,
    wake: Arc<Notify>,
    // Sandboxes that somebody here holds; the reaper leaves them alone.
    known: Mutex<HashSet<Uuid>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Pool {
    /// Starts filling. It goes on until [`Pool::shutdown`], which belongs after the last job, or a hard stop.
    pub fn start(
        driver: Arc<dyn SandboxDriver>,
        environments: &Environments,
        settings: Settings,
        asks: Asks,
        lifecycle: &Lifecycle,
    ) -> Self {
        let wake = Arc::new(Notify::new());
        let shelves = environments
            .iter()
            .map(|(name, environment)| {
                let shelf = Shelf::new(Arc::clone(environment), Arc::clone(&wake));
                (name.clone(), Arc::new(shelf))
            })
            .collect();
        let inner = Arc::new(Inner {
            driver,
            shelves,
            worker_id: settings.worker_id,
            start_timeout: settings.start_timeout,
            check_out_timeout: settings.check_out_timeout,
            sandbox: settings.sandbox,
            pace: Pace {
                quiet: settings.quiet,
                quiet_max: 10 * settings.quiet,
                backoff: Duration::from_millis(250),
                backoff_max: settings.backoff_max,
            },
            starts: Throttle::new(settings.starts_max),
            suspicion: Suspicion::default(),
            asks,
            clock: Clock::system(),
            wake,
            known: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: lifecycle.hard().child_token(),
            ended: CancellationToken::new(),
        });
        lifecycle.spawn_infallible("pool refill", refill::run(Arc::clone(&inner)));
        lifecycle.spawn_infallible("pool rollover", rollover::run(Arc::clone(&inner)));
        lifecycle.spawn_infallible("pool ownerless", ownerless::run(Arc::clone(&inner)));
        let reaper = reaper::run(Arc::clone(&inner), settings.cleanup_interval);
        lifecycle.spawn_infallible("pool reaper", reaper);
        Self(inner)
    }

    /// Whether a job may find a sandbox here: one is warm, or starts do not fail for want of the engine or of room on the
    /// disk, or the engine answers again, or it is time to see whether there is room again.
    pub async fn is_able(&self) -> bool {
        let statuses = self.status();
        let failed = |fault| {
            let last = statuses.iter().filter_map(|status| status.last_error.as_ref());
            last.filter(|last| last.fault == fault).map(|last| last.at).max()
        };
        if statuses.iter().any(|status| status.warm > 0) {
            return true;
        }
        let now = self.0.clock.now();
        if failed(Fault::Disk).is_some_and(|at| (now - at).to_std().unwrap_or_default() < self.0.pace.backoff_max) {
            return false;
        }
        failed(Fault::Engine).is_none() || self.0.driver.check().await.is_ok()
    }

    /// Has the sandbox that the next job will probably get answer, while it is not certain yet that there is one. All that is
    /// between the worker and its init has slept since it became warm, and is awake when the job comes.
    pub fn rouse(&self) {
        if let Some(shelf) = self.0.shelves.values().max_by_key(|shelf| shelf.last_check_out()) {
            shelf.rouse();
        }
    }

    /// A sandbox for one job: a warm one at once, else the next that starts. With a `profile` that does not fit into
    /// the environment's, one of that size is started for it.
    ///
    /// Cancel-safe: what was under way is used for the next job or destroyed.
    pub async fn check_out(&self, environment: &str, profile: Option<&Profile>) -> Result<Slot, Error> {
        check_out::check_out(&self.0, environment, (profile, None)).await
    }

    /// The same for a turn of Claude Code: one in which it was started in this way, if there is one.
    pub async fn check_out_spare(&self, environment: &str, recipe: &Recipe) -> Result<Slot, Error> {
        check_out::check_out(&self.0, environment, (None, Some(recipe))).await
    }

    /// Remembers that Claude Code is started in this way here: for a while some are, before they are asked for.
    pub fn remember(&self, environment: &str, recipe: &Recipe) {
        if let Some(shelf) = self.0.shelves.get(environment) {
            shelf.remember(recipe);
        }
    }

    /// The sandbox that was kept for this owner, and the version of the workspace in it; none when there is none, or it
    /// does not answer any more.
    pub async fn check_out_kept(&self, environment: &str, owner: &KeptFor) -> Option<(Slot, u64)> {
        check_out::kept(&self.0, environment, owner).await
    }

    /// Hears how many sandboxes of each environment schedules are about to ask for, of this worker, within `lasting`; what is
    /// not named is not expected. They are ready before, as far as the ceilings go.
    pub fn expect(&self, fires: &BTreeMap<String, u32>, lasting: Duration) {
        for (name, shelf) in &self.0.shelves {
            shelf.expect(fires.get(name).copied().unwrap_or(0), lasting);
        }
        self.0.wake.notify_one();
    }

    /// Looks at the images once, which also happens by itself: what is warm or kept of an older one is retired.
    pub async fn roll_over(&self) {
        rollover::tick(&self.0).await;
    }

    /// Looks once whether the conversations and agents for which sandboxes are kept are still there, which also happens by
    /// itself: those of deleted ones are retired.
    pub async fn retire_ownerless(&self) {
        ownerless::tick(&self.0).await;
    }

    /// What there is of each environment, by name.
    pub fn status(&self) -> Vec<EnvironmentStatus> {
        let shelves = self.0.shelves.values();
        shelves.map(|shelf| status(shelf)).collect()
    }

    /// The same as it is written down for people.
    pub fn report(&self) -> Vec<Sandboxes> {
        let said = |status: EnvironmentStatus| Sandboxes {
            environment: status.name,
            image: status.image,
            warm: status.warm,
            spares: status.spares,
            leased: status.leased,
            kept: status.kept,
            creating: status.creating,
            retiring: status.retiring,
            waiting: status.waiting,
            cold_starts: status
                .cold_starts
                .into_iter()
                .map(|(why, count)| (why.to_owned(), count))
                .collect(),
            held_back: status.last_error.as_ref().and_then(|last| last.fault.held_back()),
            last_error: status.last_error.map(|last| last.error),
        };
        self.status().into_iter().map(said).collect()
    }

    /// One pass of the reaper, which also runs by itself.
    pub async fn reap(&self, now: DateTime<Utc>) -> Result<Report, crate::driver::Error> {
        reaper::tick(&self.0, now).await
    }

    /// Retires everything and waits until it is gone. Slots that are still out lose their sandbox.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.ended.cancelled().await;
    }
}

impl Inner {
    /// Hands a sandbox that answered to the job that waits longest, or puts it on the shelf.
    fn deliver(self: &Arc<Self>, creating: Creating, warm: Warm) {
        if let Some((warm, retiring)) = creating.deliver(warm) {
            self.destroy(warm.id, Some(warm.sandbox), retiring);
        }
    }

    /// Kills a sandbox now and removes what is left of it behind.
    fn destroy(self: &Arc<Self>, id: Uuid, sandbox: Option<Sandbox>, retiring: Retiring) {
        if sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_alive()) {
            self.suspicion.raise();
        }
        // Its pipe closes, so init kills everything and exits; no need to wait for the engine.
        drop(sandbox);
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(e) = inner.driver.destroy(id).await {
                tracing::warn!(sandbox_id = %id, error = %e, "a sandbox is left to the reaper");
            }
            inner.known().remove(&id);
            drop(retiring);
        });
    }

    fn know(&self, id: Uuid) {
        self.known().insert(id);
    }

    fn knows(&self, id: Uuid) -> bool {
        self.known().contains(&id)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("driver", &self.driver)
            .field("worker_id", &self.worker_id)
            .finish_non_exhaustive()
    }
}

fn status(shelf: &Shelf) -> EnvironmentStatus {
    let (counts, cold_starts, last_error) = shelf.look();
    EnvironmentStatus {
        name: shelf.environment.name.clone(),
        image: shelf.environment.image(),
        image_id: shelf.image().id,
        aim: shelf.aim(),
        warm: counts.warm,
        leased: counts.leased,
        kept: counts.kept,
        creating: counts.creating,
        retiring: counts.retiring,
        spares: shelf.spares(),
        waiting: counts.waiting,
        cold_starts,
        last_error,
    }
}
