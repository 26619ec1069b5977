//! A worker and its attempt, which takes its steps independently of its heartbeat.

use crate::heartbeat::Beat;
use crate::redis::Beaten;
use crate::{ATTEMPTS_MAX, Action, Drift, RUN_ON, Rules, State, TTL};

/// A worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) is_dead: bool,
    /// The attempt's next step.
    pub(crate) work: Work,
    /// The heartbeat's next step.
    pub(crate) beat: Beat,
    /// How long ago the claim was asked for; it counts no further than matters.
    pub(crate) claim_age: u8,
    /// How long ago the renewal under way was asked for.
    pub(crate) beat_age: u8,
    /// How long ago the last beat that was heard was begun.
    pub(crate) heard_age: u8,
    /// The sandbox, while it runs.
    pub(crate) sandbox: Option<Sandbox>,
}

/// A running sandbox: init's own timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Sandbox {
    left: u8,
    /// Units that its clock may still lose.
    drift: u8,
}

/// Where the attempt is, and so which step comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Work {
    /// Ask Redis for a job.
    #[default]
    Idle,
    /// Ask Postgres to confirm the claim.
    Claimed {
        /// Of this attempt.
        attempt: u8,
    },
    /// Read that Postgres confirmed it.
    Confirmed {
        /// This attempt.
        attempt: u8,
    },
    /// Renew the lease of what was confirmed late.
    Late {
        /// Of this attempt.
        attempt: u8,
    },
    /// Read whether it lives.
    Renewed {
        /// Of this attempt.
        attempt: u8,
        /// Whether it did.
        lives: bool,
    },
    /// Give back what was confirmed late, and whose lease is gone.
    Gone {
        /// This attempt.
        attempt: u8,
    },
    /// Drop the claim that Postgres refused.
    Refused {
        /// Of this attempt.
        attempt: u8,
    },
    /// Start, when there is time to run; run; end.
    Held {
        /// This attempt.
        attempt: u8,
        /// Whether its sandbox was started.
        started: bool,
    },
    /// Commit how it ended.
    Ended {
        /// This attempt.
        attempt: u8,
        /// Whether the job has ended with it.
        is_over: bool,
    },
    /// Tell Redis that the lease ends.
    Settled {
        /// Of this attempt.
        attempt: u8,
        /// Whether the job has ended with it.
        is_over: bool,
    },
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            is_dead: false,
            work: Work::Idle,
            beat: Beat::Idle,
            claim_age: RUN_ON,
            beat_age: RUN_ON,
            heard_age: 0,
            sandbox: None,
        }
    }
}

impl Worker {
    pub(crate) fn tick(&mut self) {
        self.claim_age = (self.claim_age + 1).min(RUN_ON);
        self.beat_age = (self.beat_age + 1).min(RUN_ON);
        // An idle worker beats for nothing, and is heard.
        let is_holding = self.held().is_some();
        self.heard_age = if is_holding { (self.heard_age + 1).min(TTL) } else { 0 };
        // sandbox/init/src/server.rs: when the time is over, init kills the job and exits.
        self.sandbox = self.sandbox.and_then(|sandbox| match sandbox {
            Sandbox { left, drift } if drift > 0 => Some(Sandbox { left, drift: drift - 1 }),
            Sandbox { left: 0 | 1, .. } => None,
            Sandbox { left, drift } => Some(Sandbox { left: left - 1, drift }),
        });
    }

    pub(crate) fn forget_what_cannot_matter(&mut self) {
        if !matches!(
            self.work,
            Work::Claimed { .. } | Work::Confirmed { .. } | Work::Renewed { .. }
        ) {
            self.claim_age = RUN_ON;
        }
        // What is left of such a beat changes nothing any more, but for a registration that is on its way.
        if self.held().is_none() && !matches!(self.beat, Beat::Registering { .. }) {
            self.beat = Beat::Idle;
        }
        // Asked anew when it goes on.
        if matches!(self.beat, Beat::Idle | Beat::Saying { .. }) {
            self.beat_age = RUN_ON;
        }
        if self.held().is_none() {
            self.heard_age = 0;
        }
        if self.is_dead {
            *self = Self {
                is_dead: true,
                ..Self::default()
            };
        }
    }

    /// The attempt that heartbeats are for: `consumer/held.rs`.
    pub(crate) fn held(&self) -> Option<u8> {
        match self.work {
            Work::Held { attempt, .. } | Work::Ended { attempt, .. } => Some(attempt),
            _ => None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.work == Work::Idle
    }

    pub(crate) fn may_ask(&self, state: &State) -> bool {
        !state.redis.is_away && self.beat == Beat::Idle && self.held().is_some()
    }

    /// `Held::renew` and `executor/keeper.rs`: what is left since the renewal was asked for goes to init.
    pub(crate) fn renew(&mut self, rules: Rules, drift: Drift, attempt: u8, age: u8) {
        let age = if rules.renewal_counts_from_asking { age } else { 0 };
        let left = RUN_ON.saturating_sub(age);
        let Work::Held { attempt: held, started } = self.work else {
            return;
        };
        if held != attempt || left == 0 || (started && self.sandbox.is_none()) {
            return;
        }
        let drift = match drift {
            Drift::Sandbox => 1,
            Drift::TooMuch => 2,
            Drift::None | Drift::Leader => 0,
        };
        if self.sandbox.is_none_or(|sandbox| sandbox.left <= left) {
            self.sandbox = Some(Sandbox { left, drift });
        }
        self.work = Work::Held { attempt, started: true };
    }

    /// `Attempts::spawn`.
    fn hold(&mut self, rules: Rules, drift: Drift, attempt: u8) {
        let started = false;
        self.work = Work::Held { attempt, started };
        self.heard_age = 0;
        self.renew(rules, drift, attempt, self.claim_age);
    }

    /// `Stop::Lost`: the sandbox is killed and nothing is written. Whoever is already committing is not stopped.
    pub(crate) fn lose(&mut self, attempt: u8) {
        if matches!(self.work, Work::Held { attempt: held, .. } if held == attempt) {
            self.work = Work::Idle;
            self.sandbox = None;
        }
    }
}

/// Steps that the attempt may take.
pub(crate) fn work_steps(state: &State, index: usize, actions: &mut Vec<Action>) {
    let worker = &state.workers[index];
    if worker.is_dead {
        return;
    }
    match worker.work {
        Work::Idle if state.redis.has_ready() => actions.push(Action::Work(index, Work::Idle)),
        Work::Held { attempt, started: true } => {
            // It ends well, or its sandbox is gone and it is tried again.
            let is_over = worker.sandbox.is_some();
            actions.push(Action::Work(index, Work::Ended { attempt, is_over }));
        }
        // Nothing to claim; or no time left to begin, so that it waits for a renewal: `consumer/held.rs`, `allowed`.
        Work::Idle | Work::Held { started: false, .. } => {}
        step => actions.push(Action::Work(index, step)),
    }
}

/// Takes a step of the attempt: `consumer/confirm.rs`, `attempt.rs` and `settle.rs`, in their order.
pub(crate) fn work(state: &mut State, rules: Rules, index: usize, step: Work) {
    let worker = &mut state.workers[index];
    match (worker.work, step) {
        // Consumer::claim, the script.
        (Work::Idle, _) => {
            if let Some(attempt) = state.redis.claim(index) {
                worker.work = Work::Claimed { attempt };
                worker.claim_age = 0;
            }
        }
        // Consumer::confirm, the confirmation.
        (Work::Claimed { attempt }, _) => {
            worker.work = if state.postgres.claim(attempt, index) {
                Work::Confirmed { attempt }
            } else {
                Work::Refused { attempt }
            };
        }
        // Consumer::begin.
        (Work::Confirmed { attempt }, _) if worker.claim_age >= RUN_ON => worker.work = Work::Late { attempt },
        (Work::Confirmed { attempt } | Work::Renewed { attempt, lives: true }, _) => {
            worker.hold(rules, state.drift, attempt);
        }
        (Work::Late { attempt }, _) => {
            worker.claim_age = 0;
            let lives = !state.redis.is_away
                && if rules.late_renews {
                    state.redis.heartbeat(attempt, index) == Beaten::Ok
                } else {
                    state.redis.register(attempt, index)
                };
            worker.work = Work::Renewed { attempt, lives };
        }
        (Work::Renewed { attempt, lives: false }, _) => worker.work = Work::Gone { attempt },
        // Attempts::give_back, and the settler.
        (Work::Gone { attempt }, _) => {
            worker.work = if state.postgres.settle(rules, attempt, index, false) {
                let is_over = attempt >= ATTEMPTS_MAX;
                Work::Settled { attempt, is_over }
            } else {
                Work::Idle
            };
        }
        // Consumer::refuse.
        (Work::Refused { attempt }, _) => {
            if !state.redis.is_away {
                state.redis.drop_claim(attempt, index);
            }
            worker.work = Work::Idle;
        }
        // The executor returns, or finds its sandbox gone.
        (Work::Held { .. }, Work::Ended { attempt, is_over }) => {
            worker.work = Work::Ended { attempt, is_over };
            worker.sandbox = None;
        }
        (Work::Held { .. }, _) => {}
        // Settler: the transaction.
        (Work::Ended { attempt, is_over }, _) => {
            let is_stale = !state.postgres.is_current(attempt, index);
            if state.postgres.settle(rules, attempt, index, is_over) {
                state.stale_commit |= is_stale;
                let is_over = is_over || attempt >= ATTEMPTS_MAX;
                worker.work = Work::Settled { attempt, is_over };
            } else {
                worker.work = Work::Idle;
            }
        }
        // Settler: the end of the lease.
        (Work::Settled { attempt, is_over }, _) => {
            if !state.redis.is_away {
                state.redis.ack(attempt, !is_over);
            }
            worker.work = Work::Idle;
        }
    }
}

/// Postgres took the attempt, and the worker does not know: it drops nothing, and the lease passes.
pub(crate) fn confirm_unanswered(state: &mut State, index: usize) {
    if let Work::Claimed { attempt } = state.workers[index].work {
        state.postgres.claim(attempt, index);
        state.workers[index].work = Work::Idle;
    }
}

/// Redis renewed the lease, and the worker does not know: it gives the attempt back.
pub(crate) fn late_unanswered(state: &mut State, index: usize) {
    if let Work::Late { attempt } = state.workers[index].work {
        state.redis.heartbeat(attempt, index);
        let lives = false;
        state.workers[index].work = Work::Renewed { attempt, lives };
    }
}
