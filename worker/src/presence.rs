//! Presence: saying in Postgres every few seconds that this worker lives, and how it is doing.
//!
//! Only lists and reapers read it. Leases are another matter: see [`crate::consumer::heartbeat`].

use std::time::Duration;

use common::clock::Clock;
use common::health::{Health, Pulse};
use common::ids::WorkerId;
use common::store::Store;
use tokio_util::sync::CancellationToken;

use crate::pool::Pool;

/// Time between two signs of life.
pub const PRESENCE: Duration = Duration::from_secs(5);

/// How long before schedules fire their sandboxes are started.
const AHEAD: Duration = Duration::from_secs(20);

/// The loop's parts.
#[derive(Debug)]
pub struct Presence {
    /// Where it is said.
    pub store: Store,
    /// Who.
    pub worker_id: WorkerId,
    /// When.
    pub clock: Clock,
    /// The sandboxes of which it tells; none where there are none.
    pub pool: Option<Pool>,
    /// What else is said.
    pub health: Health,
    /// Owes signs of life that were heard.
    pub pulse: Pulse,
    /// Cancelled when an operator asked this worker to claim nothing more.
    pub claiming: CancellationToken,
}

impl Presence {
    /// Says it until `stop`, and hears whether the worker is to be drained.
    pub async fn run(self, stop: CancellationToken) {
        let mut said = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PRESENCE) => {}
            }
            let stalled = self.health.report().stalled();
            if let Some(report) = self.pool.as_ref().map(Pool::report)
                && said.as_ref() != Some(&report)
            {
                match self.store.say_sandboxes(self.worker_id, &report).await {
                    Ok(()) => said = Some(report),
                    Err(error) => tracing::debug!(%error, "Postgres does not hear of this worker's sandboxes"),
                }
            }
            match self.store.worker_seen(self.worker_id, self.clock.now(), &stalled).await {
                Ok(is_drained) => {
                    self.pulse.progress();
                    if is_drained && !self.claiming.is_cancelled() {
                        tracing::info!("asked to drain: claiming nothing more");
                        self.health.drain();
                        self.claiming.cancel();
                    }
                }
                Err(error) => tracing::debug!(%error, "Postgres does not hear that this worker lives"),
            }
            self.look_ahead().await;
        }
    }

    /// Tells the pool what schedules are about to ask for.
    async fn look_ahead(&self) {
        let Some(pool) = &self.pool else { return };
        match self.store.fires_ahead(self.clock.now(), AHEAD).await {
            Ok(fires) => pool.expect(&fires, 2 * PRESENCE),
            Err(error) => tracing::debug!(%error, "Postgres does not say what schedules are about to fire"),
        }
    }
}
