//! What every handler has at hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::cancel::Canceller;
use common::clock::Clock;
use common::health::Health;
use common::log::Log;
use common::objects::Objects;
use common::queue::Queue;
use common::store::Store;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::Keyring;
use crate::config::Config;
use crate::hub::Hub;
use crate::rate_limit::RateLimits;
use crate::submit::Submitter;
use crate::timings::Timings;

/// The state of the API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Parts>);

/// The parts of [`App`].
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) queue: Queue,
    pub(crate) log: Log,
    pub(crate) objects: Objects,
    pub(crate) keyring: Keyring,
    pub(crate) rates: RateLimits,
    pub(crate) timings: Timings,
    pub(crate) submitter: Submitter,
    pub(crate) canceller: Canceller,
    pub(crate) hub: Hub,
    pub(crate) stopping: CancellationToken,
    pub(crate) metrics: Option<PrometheusHandle>,
    pub(crate) is_prepared: AtomicBool,
    pub(crate) beside: Vec<(&'static str, Health)>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Postgres.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Redis.
    pub fn queue(&self) -> &Queue {
        &self.0.queue
    }

    /// The reader of event logs.
    pub fn log(&self) -> &Log {
        &self.0.log
    }

    /// Where artifacts are.
    pub(crate) fn objects(&self) -> &Objects {
        &self.0.objects
    }

    /// Who may call.
    pub fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    /// How often.
    pub(crate) fn rates(&self) -> &RateLimits {
        &self.0.rates
    }

    /// How long requests took.
    pub(crate) fn timings(&self) -> &Timings {
        &self.0.timings
    }

    /// Where accepted jobs go.
    pub fn submitter(&self) -> &Submitter {
        &self.0.submitter
    }

    /// Who cancels many jobs.
    pub(crate) fn canceller(&self) -> &Canceller {
        &self.0.canceller
    }

    /// Who follows which job.
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    /// Cancelled when streams and waits should end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// Whether this process knows that the tables are there and the configured key is known.
    pub(crate) fn is_prepared(&self) -> bool {
        self.0.is_prepared.load(Ordering::Acquire)
    }

    pub(crate) fn set_prepared(&self) {
        self.0.is_prepared.store(true, Ordering::Release);
    }

    /// Other parts of Hothouse in this process, by name.
    pub(crate) fn beside(&self) -> &[(&'static str, Health)] {
        &self.0.beside
    }

    /// The metrics of the process.
    pub(crate) fn metrics(&self) -> Option<&PrometheusHandle> {
        self.0.metrics.as_ref()
    }
}
