//! Doubt: nothing is claimed while it is in question whether Postgres answers. A claim that it does not confirm runs nothing,
//! and all the same uses up the starts of its jobs' limits and keeps their places until its leases pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::store::Store;
use tokio::time::sleep;

use super::PAUSE;

/// Shared by all claim loops of a worker. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<AtomicBool>);

impl Doubt {
    /// Says that Postgres did not confirm a claim.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Waits until Postgres answers, if it did not the last time.
    pub async fn over(&self, store: &Store) {
        while self.0.load(Ordering::Relaxed) {
            match store.ping().await {
                Ok(()) => self.0.store(false, Ordering::Relaxed),
                Err(error) => {
                    tracing::debug!(%error, "nothing is claimed until Postgres answers");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
