//! A worker's heartbeat.

use crate::redis::Beaten;
use crate::worker::Worker;
use crate::{Action, Drift, RUN_ON, Rules, State, TTL};

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
