//! Doubt: nothing is claimed while it is in question whether Postgres answers. A claim that it does not confirm runs nothing,
//! and all the same uses up the starts of its jobs' limits and keeps their places until its leases pass.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use common::store::Store;
use common::store::claim::Claim;
use tokio::time::sleep;

use super::PAUSE;

/// Shared by all claim loops of a worker. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Mutex<State>>);

/// A claim of which nobody knows whether Postgres confirmed it.
#[derive(Clone, Copy, Debug)]
pub struct Unheard {
    /// The claim.
    pub claim: Claim,
    /// The time that it gives its row. The same attempt may have been claimed once more since, and run: that has another.
    pub at: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct State {
    is_on: bool,
    claims: Vec<Unheard>,
}

impl Doubt {
    /// Says that Postgres did not answer to these claims. It may have confirmed them, which nobody has heard.
    pub fn begin(&self, claims: impl IntoIterator<Item = Unheard>) {
        let mut state = self.lock();
        state.is_on = true;
        state.claims.extend(claims);
    }

    /// Waits until Postgres answers, if it did not the last time.
    pub async fn over(&self, store: &Store) {
        while self.lock().is_on {
            match store.ping().await {
                Ok(()) => self.lock().is_on = false,
                Err(error) => {
                    tracing::debug!(%error, "nothing is claimed until Postgres answers");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes the claims of which nobody knows what became.
    pub fn take(&self) -> Vec<Unheard> {
        std::mem::take(&mut self.lock().claims)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
