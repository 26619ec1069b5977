//! Standing for election: taking the lease of the role `scheduler`, renewing it, and saying when it is lost.
//!
//! Postgres's clock decides who leads. A leader also counts by its own monotonic clock from before each renewal, and
//! steps down when the lease may have passed, whether or not Postgres can be asked. What it does in spite of that, being
//! frozen, is refused by the epoch: see `common::store::leaders`.

use std::time::Duration;

use common::health::Pulse;
use common::store::Store;
use common::store::leaders::Leadership;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The role that one scheduler holds.
const ROLE: &str = "scheduler";

/// One candidate.
#[derive(Debug)]
pub(crate) struct Election {
    store: Store,
    holder: Uuid,
    ttl: Duration,
    renew: Duration,
    leadership: watch::Sender<Option<Leadership>>,
    /// Owes answers of Postgres, whoever leads.
    pulse: Pulse,
}

impl Election {
    /// A candidate, and where it says whether it leads.
    pub(crate) fn new(
        store: Store,
        ttl: Duration,
        renew: Duration,
        pulse: Pulse,
    ) -> (Self, watch::Receiver<Option<Leadership>>) {
        let (leadership, receiver) = watch::channel(None);
        (
            Self {
                store,
                holder: Uuid::now_v7(),
                ttl,
                renew,
                leadership,
                pulse,
            },
            receiver,
        )
    }

    /// Stands for election until `stop`, then gives the lease up.
    pub(crate) async fn run(self, stop: &CancellationToken) {
        let mut held_until = Instant::now();
        loop {
            let pause = self.stand(&mut held_until).await;
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        let Some(leadership) = self.leadership.send_replace(None) else {
            return;
        };
        let given_up = tokio::time::timeout(self.renew, self.store.release_leadership(&leadership)).await;
        let released = given_up.is_ok_and(|released| released.is_ok());
        tracing::info!(epoch = leadership.epoch, released, "leading no more");
    }

    /// Asks once, and answers how long to wait before the next time.
    async fn stand(&self, held_until: &mut Instant) -> Duration {
        let asked = Instant::now();
        let leads = self.leadership.borrow().is_some();
        let patience = if leads {
            held_until.saturating_duration_since(asked).min(self.renew)
        } else {
            self.renew
        };
        let answer = tokio::time::timeout(patience, self.store.acquire_or_renew(ROLE, self.holder, self.ttl)).await;
        if matches!(answer, Ok(Ok(_))) {
            self.pulse.progress();
        }
        match answer {
            Ok(Ok(Some(leadership))) => {
                *held_until = asked + self.ttl;
                self.announce(Some(leadership));
                self.renew
            }
            Ok(Ok(None)) => {
                self.announce(None);
                self.renew / 2
            }
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::warn!(error = format!("{error:#}"), "the leader's lease cannot be asked for");
                }
                if *held_until <= Instant::now() {
                    self.announce(None);
                }
                self.renew / 4
            }
        }
    }

    fn announce(&self, leadership: Option<Leadership>) {
        ::metrics::gauge!("hothouse_scheduler_is_leader").set(if leadership.is_some() { 1.0 } else { 0.0 });
        self.leadership.send_if_modified(|current| {
            let changed = *current != leadership;
            if changed {
                if let Some(leadership) = &leadership {
                    tracing::info!(epoch = leadership.epoch, "leading");
                } else {
                    tracing::warn!("leadership lost");
                }
                *current = leadership;
            }
            changed
        });
    }
}
