//! Binding, serving and stopping.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use common::cancel::Canceller;
use common::clock::Clock;
use common::config::Secret;
use common::health::Health;
use common::lifecycle::Lifecycle;
use common::log::Log;
use common::objects::Objects;
use common::queue::Queue;
use common::store::{MigrateError, Store};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::{Keyring, ensure_admin_key};
use crate::config::Config;
use crate::hub::Hub;
use crate::listener::BoundedListener;
use crate::rate_limit::RateLimits;
use crate::routes;
use crate::state::{App, Parts};
use crate::submit::Submitter;
use crate::threads::Threads;
use crate::timings::Timings;

/// Time between two attempts to prepare the database.
const PREPARE_RETRY: Duration = Duration::from_secs(1);

/// Time between two runs of the metrics' upkeep.
const UPKEEP: Duration = Duration::from_secs(5);

/// A server that has its address and does not answer yet.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: BoundedListener,
    app: App,
    drain: Duration,
}

/// Serves until the lifecycle's soft stop.
///
/// # Errors
/// When the configuration cannot be used or the address cannot be bound. Postgres and Redis may be away.
pub async fn run(config: Config, clock: Clock, lifecycle: Lifecycle) -> anyhow::Result<()> {
    Server::bind(config, clock, &lifecycle).await?.serve(&lifecycle).await
}

impl Server {
    /// Takes the address and starts the parts that live as long as the server.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn bind(config: Config, clock: Clock, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        Self::bind_beside(config, clock, lifecycle, Vec::new()).await
    }

    /// The same beside other parts in one process: it is ready when they are.
    ///
    /// # Errors
    /// As [`run`].
    pub async fn bind_beside(
        config: Config,
        clock: Clock,
        lifecycle: &Lifecycle,
        beside: Vec<(&'static str, Health)>,
    ) -> anyhow::Result<Self> {
        let store = Store::open(&config.database)?;
        let queue = Queue::open(&config.redis, &config.leases)?;
        let admin_key = config.auth.resolved_admin_key()?;
        let wanted = config.http.address;
        let listener = TcpListener::bind(wanted)
            .await
            .with_context(|| format!("cannot listen on {wanted}"))?;
        let address = listener.local_addr()?;
        let listener = BoundedListener::new(listener, config.http.connections_max, config.http.write_stall);
        let hub = Hub::new();
        lifecycle.spawn_infallible("hub", hub.clone().run(queue.clone(), lifecycle.soft().clone()));
        let changes = hub.changes().clone().run(store.clone(), lifecycle.soft().clone());
        lifecycle.spawn_infallible("changes", changes);
        let metrics = common::metrics::install();
        if let Some(handle) = metrics.clone() {
            lifecycle.spawn_infallible("metrics upkeep", upkeep(handle, lifecycle.soft().clone()));
        }
        let drain = config.http.drain;
        let app = App::new(Parts {
            keyring: Keyring::new(config.auth.cache),
            rates: RateLimits::new(config.auth.rate),
            timings: Timings::default(),
            is_prepared: AtomicBool::new(false),
            // With a connection to Redis of its own: one that a thread of connections made would end with those threads.
            submitter: Submitter::spawn(
                lifecycle.tracker(),
                &store,
                &Queue::open(&config.redis, &config.leases)?,
            ),
            canceller: Canceller::new(store.clone(), queue.clone()),
            log: Log::new(store.clone(), queue.clone()),
            objects: Objects::open(&config.objects)?,
            stopping: lifecycle.soft().clone(),
            metrics,
            beside,
            config,
            clock,
            store,
            queue,
            hub,
        });
        lifecycle.spawn_infallible("prepare database", prepare(app.clone(), admin_key));
        Ok(Self {
            address,
            listener,
            app,
            drain,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the soft stop, then finishes what is under way within `http.drain`.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, lifecycle: &Lifecycle) -> anyhow::Result<()> {
        tracing::info!(address = %self.address, "the API listens");
        let soft = lifecycle.soft().clone();
        let (stop, hard, drain) = (soft.clone(), lifecycle.hard().clone(), self.drain);
        let served =
            axum::serve(self.listener, routes::router(self.app)).with_graceful_shutdown(stop.cancelled_owned());
        let threads = Threads::start()?;
        let served = threads.spawn(served.into_future());
        let too_long = async {
            soft.cancelled().await;
            tokio::select! {
                () = hard.cancelled() => {}
                () = tokio::time::sleep(drain) => {}
            }
        };
        tokio::select! {
            served = served => Ok(served??),
            () = too_long => {
                tracing::warn!("requests under way are dropped");
                Ok(())
            }
        }
    }
}

/// Folds recorded samples into histograms, so that they do not pile up where nobody scrapes.
async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(UPKEEP) => handle.run_upkeep(),
        }
    }
}

/// Migrates and makes the admin key known, as soon as Postgres is there.
async fn prepare(app: App, admin_key: Option<Secret>) {
    loop {
        match prepare_once(&app, admin_key.as_ref()).await {
            Ok(()) => return tracing::info!("the database is ready"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the database is not ready"),
        }
        tokio::select! {
            () = app.stopping().cancelled() => return,
            () = tokio::time::sleep(PREPARE_RETRY) => {}
        }
    }
}

async fn prepare_once(app: &App, admin_key: Option<&Secret>) -> anyhow::Result<()> {
    if app.config().http.migrate {
        match app.store().migrate().await {
            // While replicas are upgraded one by one, some that start anew are still the old ones.
            Err(MigrateError::VersionMissing(version)) => {
                tracing::warn!(version, "the database was migrated by a newer version");
            }
            migrated => migrated?,
        }
    }
    ensure_admin_key(app.store(), admin_key, app.clock()).await?;
    // Somebody may have shown it before.
    app.keyring().clear();
    app.set_prepared();
    Ok(())
}
