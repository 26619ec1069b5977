//! The worker process: what it starts, and in what order it stops.
//!
//! At a soft stop the claim loops end, attempts finish within `worker.drain`, and those that do not are given back, which
//! costs them nothing. Heartbeats and settling go on until the last attempt is settled; only then the pool goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use common::clock::Clock;
use common::health::{Health, Pulse};
use common::ids::WorkerId;
use common::job::spec::SlotClass;
use common::lifecycle::Lifecycle;
use common::queue::Queue;
use common::store::Store;
use common::store::workers;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::{Attempts, Parts};
use crate::config::{Config, Worker};
use crate::consumer::doubt::Doubt;
use crate::consumer::heartbeat::Heartbeat;
use crate::consumer::held::{Held, Stop};
use crate::consumer::solitude::Solitude;
use crate::consumer::{Consumer, cancels};
use crate::executor::Machine;
use crate::machine;
use crate::offer;
use crate::presence::{PRESENCE, Presence};
use crate::settle::Settler;

/// How long attempts that were told to stop may take to say so.
const GRACE: Duration = Duration::from_secs(10);

/// A running worker's parts that its stop needs.
struct Running {
    worker_id: WorkerId,
    store: Store,
    clock: Clock,
    held: Held,
    /// The loops that claim: one that has asked Redis carries out what it is answered.
    claims: TaskTracker,
    attempts: TaskTracker,
    settling: TaskTracker,
    upkeep: CancellationToken,
    machine: Machine,
    health: Health,
}

impl Running {
    /// Waits until nothing is claimed any more, and every attempt has ended.
    async fn idle(&self) {
        self.claims.wait().await;
        self.attempts.wait().await;
    }
}

/// Starts a worker on the lifecycle and returns when it has stopped. It needs neither Postgres nor Redis to start.
/// `health` hears of its progress.
///
/// # Errors
/// When the configuration is wrong.
pub async fn run(config: Config, clock: Clock, lifecycle: Lifecycle, health: Health) -> anyhow::Result<()> {
    let seen = health.pulse("presence", PRESENCE);
    let store = Store::open(&config.database)?;
    let queue = Queue::open(&config.redis, &config.leases)?;
    let worker_id = WorkerId::new();
    let (mut machine, driver) = machine::open(&config, &store, &queue).await?;
    let name = driver.as_ref().map_or("none", |driver| driver.name());
    let sandbox_slots = driver.as_ref().map_or(0, |_| config.worker.sandbox_slots());
    let slots = BTreeMap::from([
        (SlotClass::Light, config.worker.light_slots),
        (SlotClass::Sandbox, sandbox_slots),
    ]);
    let registration = registration(&config.worker, worker_id, &slots, name, &clock);
    if !register(&store, &registration, &lifecycle).await {
        return Ok(());
    }
    seen.progress();
    tracing::info!(%worker_id, name = registration.name, driver = name, ?slots, "worker started");
    if let Some(driver) = driver {
        machine::fill(&mut machine, driver, &config.sandbox, worker_id, &clock, &lifecycle);
    }
    if let Some(pool) = machine.pool.clone() {
        let served = (Arc::clone(&machine.environments), pool);
        let offer = offer::run(store.clone(), worker_id, served, lifecycle.soft().clone());
        lifecycle.spawn_infallible("offer", offer);
    }
    let running = Running {
        worker_id,
        store: store.clone(),
        clock: clock.clone(),
        held: Held::default(),
        claims: TaskTracker::new(),
        attempts: TaskTracker::new(),
        settling: TaskTracker::new(),
        upkeep: CancellationToken::new(),
        machine,
        health,
    };
    start(&config, &running, &queue, &slots, &lifecycle, seen);
    lifecycle.soft().cancelled().await;
    stop(&running, config.worker.drain, &lifecycle).await
}

fn registration(
    worker: &Worker,
    id: WorkerId,
    slots: &BTreeMap<SlotClass, u32>,
    driver: &str,
    clock: &Clock,
) -> workers::Worker {
    workers::Worker {
        id,
        name: worker.name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: slots
            .iter()
            .map(|(slot, count)| (slot.as_str().to_owned(), *count))
            .collect(),
        labels: worker.labels.clone(),
        queues: worker.queues.clone(),
        driver: driver.to_owned(),
        started_at: clock.now(),
    }
}

/// Registers as soon as Postgres answers; answers false when the process is stopped before.
async fn register(store: &Store, worker: &workers::Worker, lifecycle: &Lifecycle) -> bool {
    loop {
        match store.register_worker(worker).await {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%error, "waiting for Postgres"),
        }
        tokio::select! {
            () = lifecycle.soft().cancelled() => return false,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn start(
    config: &Config,
    running: &Running,
    queue: &Queue,
    slots: &BTreeMap<SlotClass, u32>,
    lifecycle: &Lifecycle,
    seen: Pulse,
) {
    let (worker_id, store, held, health) = (running.worker_id, &running.store, &running.held, &running.health);
    let attempts = Attempts::new(Parts {
        worker_id,
        store: store.clone(),
        queue: queue.clone(),
        clock: running.clock.clone(),
        held: held.clone(),
        settler: Settler::spawn(
            worker_id,
            store.clone(),
            queue.clone(),
            lifecycle.hard().clone(),
            health.pulse("settle", Duration::ZERO),
            &running.settling,
        ),
        machine: running.machine.clone(),
        run_on: config.leases.run_on,
        tracker: running.attempts.clone(),
    });
    let heartbeat = Heartbeat {
        worker_id,
        queue: queue.clone(),
        store: store.clone(),
        held: held.clone(),
        leases: config.leases.clone(),
        clock: running.clock.clone(),
        pulse: health.pulse("heartbeat", config.leases.heartbeat),
    };
    let upkeep = &running.upkeep;
    lifecycle.spawn_infallible("heartbeat", heartbeat.run(upkeep.clone()));
    lifecycle.spawn_infallible(
        "cancels",
        cancels::run(worker_id, queue.clone(), held.clone(), upkeep.clone()),
    );
    // Ends with the soft stop, or when an operator drains this worker.
    let claiming = lifecycle.soft().child_token();
    let presence = Presence {
        store: store.clone(),
        worker_id,
        clock: running.clock.clone(),
        pool: running.machine.pool.clone(),
        health: health.clone(),
        pulse: seen,
        claiming: claiming.clone(),
    };
    lifecycle.spawn_infallible("presence", presence.run(upkeep.clone()));
    let (solitude, doubt) = (Solitude::default(), Doubt::default());
    for (slot, count) in slots.iter().filter(|(_, count)| **count > 0) {
        let count = usize::try_from(*count).unwrap_or(usize::MAX);
        let consumer = Consumer {
            worker_id,
            slot: *slot,
            labels: config.worker.labels.clone(),
            queues: config.worker.queues.clone(),
            slots: Arc::new(Semaphore::new(count)),
            // Room for results on their way while the slots work on: a few commits' worth.
            results: Arc::new(Semaphore::new(count.saturating_mul(4))),
            queue: queue.clone(),
            store: store.clone(),
            attempts: attempts.clone(),
            pool: running.machine.pool.clone().filter(|_| *slot == SlotClass::Sandbox),
            solitude: solitude.clone(),
            doubt: doubt.clone(),
        };
        for shard in queue.shards() {
            let pulse = health.pulse(format!("claim {} {shard}", slot.as_str()), Duration::ZERO);
            let claims = consumer.clone().run(shard, pulse, claiming.clone());
            lifecycle.spawn_infallible("consumer", running.claims.track_future(claims));
        }
    }
}

async fn stop(running: &Running, drain: Duration, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    running.health.drain();
    running.claims.close();
    running.attempts.close();
    let held = running.held.len();
    if held > 0 {
        tracing::info!(held, "draining");
    }
    tokio::select! {
        () = running.idle() => {}
        () = lifecycle.hard().cancelled() => {}
        () = tokio::time::sleep(drain) => {}
    }
    running.held.stop_all(Stop::Drain);
    let ended = tokio::time::timeout(GRACE, running.idle()).await;
    if ended.is_err() {
        tracing::warn!(
            held = running.held.len(),
            "attempts did not end: others take them over when their leases pass"
        );
    }
    running.machine.shutdown().await;
    if let Err(error) = running
        .store
        .worker_stopped(running.worker_id, running.clock.now())
        .await
    {
        tracing::warn!(%error, "Postgres does not hear that this worker has stopped");
    }
    running.upkeep.cancel();
    ended.context("not every attempt ended in time")
}
