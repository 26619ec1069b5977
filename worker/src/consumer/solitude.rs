//! Being alone: a job that killed its workers is claimed by one that holds nothing else, so that it harms nobody else.
//!
//! All claim loops of a worker share one [`Solitude`]. Each claims in [`Company`]; the one that is called to claim a job
//! alone reserves the worker, waits until it holds nothing, and keeps it until that job has ended.

use std::sync::Arc;
use std::time::Duration;

use common::health::Pulse;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::held::Held;

/// How long a worker may take to finish what it holds. The queue calls another one after that.
pub const EMPTYING_MAX: Duration = Duration::from_secs(30);

/// Between two looks at what is held.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    claiming: u32,
    is_reserved: bool,
}

/// Who may claim. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Solitude {
    state: Arc<watch::Sender<State>>,
}

/// The right to claim beside others.
#[derive(Debug)]
pub struct Company(Solitude);

/// The right to be the only one that claims.
#[derive(Debug)]
pub struct Reserved(Solitude);

impl Solitude {
    /// Waits until nobody has reserved the worker; `pulse` rests meanwhile.
    pub async fn company(&self, pulse: &Pulse) -> Company {
        let mut changes = self.state.subscribe();
        loop {
            let joined = self.state.send_if_modified(|state| {
                if !state.is_reserved {
                    state.claiming += 1;
                }
                !state.is_reserved
            });
            if joined {
                pulse.owe();
                return Company(self.clone());
            }
            pulse.rest();
            // The sender is ours, so it cannot be gone.
            drop(changes.wait_for(|state| !state.is_reserved).await);
        }
    }

    /// Reserves the worker; `None` when another loop has.
    pub fn reserve(&self) -> Option<Reserved> {
        let is_mine = self
            .state
            .send_if_modified(|state| !std::mem::replace(&mut state.is_reserved, true));
        is_mine.then(|| Reserved(self.clone()))
    }
}

impl Company {
    /// Whether nobody else claims, and nothing is held.
    pub fn is_idle(&self, held: &Held) -> bool {
        self.0.state.borrow().claiming == 1 && held.is_empty()
    }
}

impl Reserved {
    /// Waits until nobody claims and nothing is held. Answers false when that takes longer than `limit`.
    pub async fn emptied(&self, held: &Held, limit: Duration) -> bool {
        let emptied = async {
            while self.0.state.borrow().claiming > 0 || !held.is_empty() {
                sleep(LOOK).await;
            }
        };
        timeout(limit, emptied).await.is_ok()
    }
}

impl Drop for Company {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.claiming -= 1);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.is_reserved = false);
    }
}

#[cfg(test)]
mod tests {
    use common::health::Health;
    use common::ids::{JobId, TenantId};
    use futures_util::FutureExt;

    use super::super::held::HeldAttempt;
    use super::*;

    #[tokio::test]
    async fn nobody_claims_beside_the_one_that_is_alone() {
        let (solitude, held) = (Solitude::default(), Held::default());
        let pulse = &Health::new(LOOK).pulse("claim", LOOK);
        let attempt = HeldAttempt {
            job_id: JobId::new(),
            attempt: 1,
            tenant_id: TenantId::new(),
        };
        let company = solitude.company(pulse).await;
        assert!(company.is_idle(&held));
        let other = solitude.company(pulse).await;
        assert!(!company.is_idle(&held));
        let reserved = solitude.reserve().unwrap();
        assert!(solitude.reserve().is_none());
        assert!(solitude.company(pulse).now_or_never().is_none());
        assert!(!reserved.emptied(&held, LOOK).await);
        drop((company, other));
        let holding = held.add(attempt, std::time::Instant::now() + Duration::from_secs(5));
        assert!(!reserved.emptied(&held, LOOK).await);
        drop(holding);
        assert!(reserved.emptied(&held, LOOK).await);
        drop(reserved);
        assert!(solitude.company(pulse).await.is_idle(&held));
    }
}
