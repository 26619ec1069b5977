//! The scheduler of Hothouse: cron, and the periodic duties that keep Postgres and Redis in step.
//!
//! Any number of schedulers may run; one leads. See [`leader`] for how it is elected and [`duties`] for what it does.

mod config;
pub mod duties;
mod leader;
mod record;

pub use config::{Config, Partitions, Retention, Scheduler};

use std::sync::Arc;

use common::clock::Clock;
use common::health::Health;
use common::lifecycle::Lifecycle;
use common::objects::Objects;
use common::queue::Queue;
use common::store::Store;
use tokio_util::sync::CancellationToken;

use duties::Deps;
use leader::Election;
use record::Recorder;

/// Starts a scheduler on the lifecycle and returns when it has stopped. It needs neither Postgres nor Redis to start:
/// it stands for election again and again until Postgres answers. `health` hears of its progress.
///
/// # Errors
/// When the configuration names no database or no Redis, or one that cannot be read.
pub async fn run(config: Config, clock: Clock, lifecycle: Lifecycle, health: Health) -> anyhow::Result<()> {
    let store = Store::open(&config.database)?;
    Objects::open(&config.objects)?;
    let queue = Queue::open(&config.redis, &config.leases)?;
    serve((store, queue), config, clock, lifecycle, health).await;
    Ok(())
}

/// The same over a store and a queue that somebody else opened, such as a test that moves their clocks. Closes the store
/// at the end.
pub async fn serve((store, queue): (Store, Queue), config: Config, clock: Clock, lifecycle: Lifecycle, health: Health) {
    let drained = health.clone();
    let (election, leadership) = Election::new(
        store.clone(),
        config.scheduler.leader_ttl,
        config.scheduler.leader_renew,
        health.pulse("election", config.scheduler.leader_renew),
    );
    let recorder = Arc::new(Recorder::new(store.clone(), clock.clone()));
    // It was opened before where anybody could be told.
    let objects = Objects::open(&config.objects).unwrap_or_else(|error| {
        tracing::error!(%error, "objects are not deleted");
        Objects::none()
    });
    let deps = Deps {
        objects,
        store: store.clone(),
        queue,
        config: Arc::new(config),
        clock,
        recorder: Arc::clone(&recorder),
        health,
    };
    // The lease is held, and reports are written, until the last duty has stopped.
    let ended = CancellationToken::new();
    let work = async {
        duties::while_leading(&deps, leadership, lifecycle.soft()).await;
        drained.drain();
        ended.cancel();
    };
    tokio::join!(election.run(&ended), recorder.run(&ended), work);
    store.close().await;
}
