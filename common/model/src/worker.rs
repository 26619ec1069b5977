//! A worker: its attempt and its heartbeat, which take their steps independently of each other.

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

/// Where the heartbeat is, and so which step comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Beat {
    /// Ask Redis to extend.
    #[default]
    Idle,
    /// Read the answer.
    Answered {
        /// For this attempt.
        attempt: u8,
        /// What Redis said.
        beaten: Beaten,
        /// Whether the lease had not passed when it was asked.
        alive: bool,
    },
    /// Say in Postgres that this worker lives.
    Saying {
        /// For this attempt.
        attempt: u8,
        /// Whether Redis can be registered with.
        registers: bool,
    },
    /// Look in Postgres whether the attempt is its own.
    Confirming {
        /// This attempt.
        attempt: u8,
        /// Whether Redis can be registered with.
        registers: bool,
    },
    /// Register with Redis.
    Registering {
        /// This attempt.
        attempt: u8,
    },
    /// Read whether Redis accepted.
    Registered {
        /// This attempt.
        attempt: u8,
        /// Whether it did.
        accepted: bool,
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
        if !matches!(self.work, Work::Claimed { .. }) {
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
    fn held(&self) -> Option<u8> {
        match self.work {
            Work::Held { attempt, .. } | Work::Ended { attempt, .. } => Some(attempt),
            _ => None,
        }
    }

    pub(crate) fn may_ask(&self, state: &State) -> bool {
        !state.redis.is_away && self.beat == Beat::Idle && self.held().is_some()
    }

    /// `Held::renew` and `executor/keeper.rs`: what is left since the renewal was asked for goes to init.
    fn renew(&mut self, rules: Rules, drift: Drift, attempt: u8, age: u8) {
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

    /// `Stop::Lost`: the sandbox is killed and nothing is written. Whoever is already committing is not stopped.
    fn lose(&mut self, attempt: u8) {
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

/// Takes a step of the attempt: `consumer/mod.rs`, `attempt.rs` and `settle.rs`, in their order.
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
        // Consumer::claim, the confirmation; then Attempts::spawn.
        (Work::Claimed { attempt }, _) => {
            if state.postgres.claim(attempt, index) {
                worker.work = Work::Held {
                    attempt,
                    started: false,
                };
                worker.heard_age = 0;
                worker.renew(rules, state.drift, attempt, worker.claim_age);
            } else {
                worker.work = Work::Refused { attempt };
            }
        }
        // Consumer::claim, what was refused.
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

/// Postgres took the attempt, and the worker does not know: it drops the claim.
pub(crate) fn confirm_unanswered(state: &mut State, index: usize) {
    if let Work::Claimed { attempt } = state.workers[index].work {
        state.postgres.claim(attempt, index);
        state.workers[index].work = Work::Refused { attempt };
    }
}

/// Steps that the heartbeat may take.
pub(crate) fn beat_steps(state: &State, index: usize, actions: &mut Vec<Action>) {
    let worker = &state.workers[index];
    if !worker.is_dead && (worker.beat != Beat::Idle || worker.held().is_some()) {
        actions.push(Action::Beat(index, worker.beat));
    }
}

/// Takes a step of the heartbeat: `consumer/heartbeat.rs`, in its order.
pub(crate) fn beat(state: &mut State, rules: Rules, index: usize, _step: Beat) {
    let worker = &mut state.workers[index];
    worker.beat = match worker.beat {
        // Heartbeat::beat_shard, the script.
        Beat::Idle => {
            let Some(attempt) = worker.held() else { return };
            let (alive, is_away) = (worker.heard_age < TTL, state.redis.is_away);
            worker.beat_age = 0;
            let beaten = if is_away {
                Beaten::Away
            } else {
                state.redis.heartbeat(attempt, index)
            };
            Beat::Answered { attempt, beaten, alive }
        }
        Beat::Answered { attempt, beaten, alive } => answered(worker, rules, state.drift, (attempt, beaten, alive)),
        // Heartbeat::say_alive, the first statement.
        Beat::Saying { attempt, registers } => {
            worker.beat_age = 0;
            state.postgres.say_alive(index, state.drift);
            Beat::Confirming { attempt, registers }
        }
        // Heartbeat::say_alive, the second; then go_on_without_redis, or register.
        Beat::Confirming { attempt, registers } => {
            let is_own = state.postgres.is_current(attempt, index);
            if !is_own && rules.alive_is_confirmed {
                worker.lose(attempt);
                Beat::Idle
            } else {
                worker.renew(rules, state.drift, attempt, worker.beat_age);
                worker.heard_age = worker.beat_age;
                if registers {
                    Beat::Registering { attempt }
                } else {
                    Beat::Idle
                }
            }
        }
        // Heartbeat::register, the script.
        Beat::Registering { .. } if state.redis.is_away => Beat::Idle,
        Beat::Registering { attempt } => {
            if !rules.registration_is_timely {
                worker.beat_age = 0;
            }
            let accepted = state.redis.register(attempt, index);
            Beat::Registered { attempt, accepted }
        }
        Beat::Registered { attempt, accepted } => {
            if worker.beat_age >= RUN_ON {
                worker.lose(attempt);
            } else if accepted {
                worker.renew(rules, state.drift, attempt, worker.beat_age);
                worker.heard_age = worker.beat_age;
            }
            Beat::Idle
        }
    };
}

/// `Heartbeat::beat_shard`, what follows the answer.
fn answered(worker: &mut Worker, rules: Rules, drift: Drift, (attempt, beaten, alive): (u8, Beaten, bool)) -> Beat {
    let goes_on = beaten == Beaten::Ok || (beaten == Beaten::Unsure && !rules.unknown_registers);
    match beaten {
        _ if goes_on => {
            worker.renew(rules, drift, attempt, worker.beat_age);
            worker.heard_age = worker.beat_age;
            Beat::Idle
        }
        Beaten::Unsure | Beaten::Away if alive => Beat::Saying {
            attempt,
            registers: beaten == Beaten::Unsure,
        },
        Beaten::Away => Beat::Idle,
        _ => {
            worker.lose(attempt);
            Beat::Idle
        }
    }
}

/// Nobody answers a heartbeat, which Redis may have heard.
pub(crate) fn beat_unanswered(state: &mut State, index: usize, is_heard: bool) {
    let Some(attempt) = state.workers[index].held() else {
        return;
    };
    if is_heard {
        state.redis.heartbeat(attempt, index);
    }
    let worker = &mut state.workers[index];
    worker.beat_age = 0;
    let (beaten, alive) = (Beaten::Away, worker.heard_age < TTL);
    worker.beat = Beat::Answered { attempt, beaten, alive };
}
