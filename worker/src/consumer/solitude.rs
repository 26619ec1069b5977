//! Being alone: a job that killed its workers is claimed by one that holds nothing else, so that it harms nobody else.
//!
//! All claim loops of a worker share one [`Solitude`]. Each claims in [`Company`]; the one that is called to claim a job
//! alone reserves the worker, waits until it holds nothing, and keeps it until that job has ended.
//!
//! A worker that cannot empty itself must not stand still for it, and the job must not wait for ever either: after a try that
//! was in vain the worker claims as usual for [`REST`] times as long, and the next try may last [`GROWTH`] times as long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::health::Pulse;
use common::queue::Mode;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::held::Held;

/// How long a worker takes at most, at first, to finish what it holds.
const EMPTYING: Duration = Duration::from_secs(30);

/// How much longer the next try may last.
const GROWTH: u32 = 4;

/// How many times as long as a try in vain a worker is not called again: it gives up a quarter of its time at most.
const REST: u32 = 3;

/// Between two looks whether the job still waits for this worker. The queue calls another one when it is not heard for 30 s.
const ASK: Duration = Duration::from_secs(5);

/// Between two looks at what is held.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    claiming: u32,
    is_reserved: bool,
    patience: Patience,
}

/// How long a worker tries to empty itself, and when it may be called to.
#[derive(Clone, Copy, Debug)]
struct Patience {
    limit: Duration,
    rests_until: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: EMPTYING,
            rests_until: None,
        }
    }
}

impl Patience {
    /// After a try in vain.
    fn after(self, took: Duration, now: Instant) -> Self {
        let is_over = took >= self.limit;
        Self {
            limit: if is_over {
                self.limit.saturating_mul(GROWTH)
            } else {
                self.limit
            },
            rests_until: now.checked_add(took.saturating_mul(REST)),
        }
    }

    fn rests(self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
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
pub struct Reserved {
    solitude: Solitude,
    begun: Instant,
    is_in_vain: bool,
}

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
        is_mine.then(|| Reserved {
            solitude: self.clone(),
            begun: Instant::now(),
            is_in_vain: true,
        })
    }
}

impl Company {
    /// How to claim: as one that is idle when nobody else claims and nothing is held.
    pub fn mode(&self, held: &Held) -> Mode {
        let state = *self.0.state.borrow();
        if state.claiming == 1 && held.is_empty() {
            Mode::Idle
        } else if state.patience.rests(Instant::now()) {
            Mode::Staying
        } else {
            Mode::Busy
        }
    }
}

impl Reserved {
    /// How long to wait for the worker to be empty before it is asked whether that is still wanted; `None` when this try
    /// has lasted long enough.
    pub fn patience(&self) -> Option<Duration> {
        let limit = self.solitude.state.borrow().patience.limit;
        let left = limit.saturating_sub(self.begun.elapsed());
        (!left.is_zero()).then(|| left.min(ASK))
    }

    /// Waits until nobody claims and nothing is held. Answers false when that takes longer than `limit`.
    pub async fn emptied(&self, held: &Held, limit: Duration) -> bool {
        let emptied = async {
            while self.solitude.state.borrow().claiming > 0 || !held.is_empty() {
                sleep(LOOK).await;
            }
        };
        timeout(limit, emptied).await.is_ok()
    }

    /// Says that the worker has the job for which it was reserved.
    pub fn has_claimed(&mut self) {
        self.is_in_vain = false;
    }
}

impl Drop for Company {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.claiming -= 1);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.solitude.state.send_modify(|state| {
            state.is_reserved = false;
            state.patience = if self.is_in_vain {
                state.patience.after(took, Instant::now())
            } else {
                Patience::default()
            };
        });
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
        assert_eq!(company.mode(&held), Mode::Idle);
        let other = solitude.company(pulse).await;
        assert_eq!(company.mode(&held), Mode::Busy);
        let reserved = solitude.reserve().unwrap();
        assert!(solitude.reserve().is_none());
        assert!(solitude.company(pulse).now_or_never().is_none());
        assert!(!reserved.emptied(&held, LOOK).await);
        drop((company, other));
        let holding = held.add(attempt, Instant::now() + Duration::from_secs(5));
        assert!(!reserved.emptied(&held, LOOK).await);
        drop(holding);
        assert!(reserved.emptied(&held, LOOK).await);
        drop(reserved);
        assert_eq!(solitude.company(pulse).await.mode(&held), Mode::Idle);
    }

    #[tokio::test]
    async fn a_try_in_vain_is_followed_by_a_rest_and_one_that_was_not_is_forgotten() {
        let (solitude, held) = (Solitude::default(), Held::default());
        let pulse = &Health::new(LOOK).pulse("claim", LOOK);
        let (company, _other) = (solitude.company(pulse).await, solitude.company(pulse).await);
        let mut reserved = solitude.reserve().unwrap();
        reserved.begun = Instant::now().checked_sub(EMPTYING).unwrap();
        assert_eq!(reserved.patience(), None);
        drop(reserved);
        assert_eq!(company.mode(&held), Mode::Staying);
        reserved = solitude.reserve().unwrap();
        assert_eq!(reserved.patience(), Some(ASK));
        reserved.has_claimed();
        drop(reserved);
        assert_eq!(company.mode(&held), Mode::Busy);
    }

    /// One that never holds nothing, for each of its jobs takes long and another one begins in between.
    #[test]
    fn a_worker_of_long_jobs_is_empty_in_the_end_and_claims_most_of_the_time() {
        let (long, mut at) = (Duration::from_mins(30), Instant::now());
        let (begun, mut patience, mut reserved) = (at, Patience::default(), Duration::ZERO);
        while patience.limit < long {
            assert!(!patience.rests(at));
            let took = patience.limit;
            (at, reserved) = (at + took, reserved + took);
            patience = patience.after(took, at);
            assert!(patience.rests(at));
            at = patience.rests_until.unwrap();
        }
        assert!(reserved * (REST + 1) <= at - begun);
        assert!(at - begun < long * 2, "the job waits for {:?}", at - begun);
        // What ended early costs no more than it took.
        let short = patience.after(LOOK, at);
        assert_eq!((short.limit, short.rests(at + LOOK * REST)), (patience.limit, false));
    }
}
