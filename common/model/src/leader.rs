//! The leader: the redispatch and the reclaim duty, which take their steps independently of each other. Between the two
//! halves of a step, what was read may have changed.

use crate::{Action, Rules, State, TTL};

/// Where the redispatch duty is: `scheduler/src/duties/redispatch/mod.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Rebuild {
    #[default]
    Idle,
    /// It read a running row, and begins a lease for it.
    Adopting { attempt: u8, worker: usize },
    /// It read what is queued of a closed generation, and dispatches it.
    Filling { generation: u8, attempt: Option<u8> },
    /// It opens the generation.
    Opening { generation: u8 },
    /// It read a queued row that Redis does not know, and dispatches it.
    Dispatching { attempt: u8 },
}

/// Where the reclaim duty is: `scheduler/src/duties/reclaim.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Reclaim {
    #[default]
    Idle,
    /// It heard of a passed lease, and asks Postgres.
    Resolving { attempt: u8, worker: usize },
    /// It read a running row that Redis does not know, and takes it over: only without `unknown_is_adopted`.
    TakingOver { attempt: u8 },
    /// It read a row that is queued, and drops the lease.
    Dropping { attempt: u8, worker: usize, next: u8 },
    /// It dispatches the next attempt.
    Dispatching { attempt: u8 },
    /// It read a running row that Redis does not know, and begins a lease for it.
    Adopting { attempt: u8, worker: usize },
    /// It read a row that has ended, and forgets it.
    Forgetting,
}

/// What the redispatch duty may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RebuildStep {
    /// Begin a generation.
    Begin,
    /// Read the running rows of a closed generation.
    ReadRunning,
    /// Read what is queued, when there is nothing to wait for.
    ReadQueued,
    /// Look for queued rows that Redis does not know.
    Look,
    /// Do what was decided.
    Act,
}

/// What the reclaim duty may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReclaimStep {
    /// Ask Redis which leases have passed.
    Expired,
    /// Look for running rows that Redis does not know.
    Sweep,
    /// Do what was decided.
    Act,
}

/// Steps that the redispatch duty may take.
pub(crate) fn rebuild_steps(state: &State, rules: Rules, actions: &mut Vec<Action>) {
    if state.redis.is_away {
        return;
    }
    let step = match (state.rebuild, state.redis.begun, state.redis.is_open) {
        (Rebuild::Idle, None, _) => RebuildStep::Begin,
        (Rebuild::Idle, Some(_), true) if is_unknown_queued(state) => RebuildStep::Look,
        (Rebuild::Idle, Some(_), true) => return,
        (Rebuild::Idle, Some((age, _)), false) => {
            if is_unknown_running(state) {
                RebuildStep::ReadRunning
            } else if state.postgres.running.is_none() || age >= TTL || !rules.wipe_waits {
                RebuildStep::ReadQueued
            } else {
                return;
            }
        }
        _ => RebuildStep::Act,
    };
    actions.push(Action::Rebuild(step));
}

/// Takes a step of the redispatch duty.
pub(crate) fn rebuild(state: &mut State, rules: Rules, step: RebuildStep) {
    let next = state.postgres.attempt + 1;
    state.rebuild = match (step, state.rebuild) {
        (RebuildStep::Begin, _) => {
            state.redis.begin();
            Rebuild::Idle
        }
        (RebuildStep::ReadRunning, _) => match state.postgres.running {
            Some(worker) => Rebuild::Adopting {
                attempt: state.postgres.attempt,
                worker,
            },
            None => Rebuild::Idle,
        },
        (RebuildStep::ReadQueued, _) => match state.redis.begun {
            Some((_, generation)) => Rebuild::Filling {
                generation,
                attempt: state.postgres.is_queued().then_some(next),
            },
            None => Rebuild::Idle,
        },
        (RebuildStep::Look, _) => Rebuild::Dispatching { attempt: next },
        (RebuildStep::Act, Rebuild::Adopting { attempt, worker }) => {
            state.redis.adopt(rules, attempt, worker);
            Rebuild::Idle
        }
        (RebuildStep::Act, Rebuild::Filling { generation, attempt }) => {
            if let Some(attempt) = attempt {
                state.redis.dispatch(rules, attempt);
            }
            Rebuild::Opening { generation }
        }
        (RebuildStep::Act, Rebuild::Opening { generation }) => {
            state.redis.open(generation);
            Rebuild::Idle
        }
        (RebuildStep::Act, Rebuild::Dispatching { attempt }) => {
            state.redis.dispatch(rules, attempt);
            Rebuild::Idle
        }
        (RebuildStep::Act, Rebuild::Idle) => Rebuild::Idle,
    };
}

/// Steps that the reclaim duty may take.
pub(crate) fn reclaim_steps(state: &State, actions: &mut Vec<Action>) {
    if state.redis.is_away {
        return;
    }
    if state.reclaim != Reclaim::Idle {
        actions.push(Action::Reclaim(ReclaimStep::Act));
    } else if state.redis.begun.is_some() && state.redis.is_open {
        actions.push(Action::Reclaim(ReclaimStep::Expired));
        if is_unknown_running(state) {
            actions.push(Action::Reclaim(ReclaimStep::Sweep));
        }
    }
}

/// Takes a step of the reclaim duty.
pub(crate) fn reclaim(state: &mut State, rules: Rules, step: ReclaimStep) {
    let next = state.postgres.attempt + 1;
    if step != ReclaimStep::Act {
        state.postgres.begin_reclaim();
    }
    state.reclaim = match (step, state.reclaim) {
        (ReclaimStep::Expired, _) => match state.redis.expired() {
            Some((attempt, worker)) => Reclaim::Resolving { attempt, worker },
            None => Reclaim::Idle,
        },
        (ReclaimStep::Sweep, _) => match state.postgres.running {
            Some(_) if !rules.unknown_is_adopted => Reclaim::TakingOver {
                attempt: state.postgres.attempt,
            },
            Some(worker) => Reclaim::Adopting {
                attempt: state.postgres.attempt,
                worker,
            },
            None => Reclaim::Idle,
        },
        (ReclaimStep::Act, Reclaim::Resolving { attempt, worker }) => match state.postgres.running {
            _ if state.postgres.is_done => Reclaim::Forgetting,
            None => Reclaim::Dropping { attempt, worker, next },
            Some(runner) if (state.postgres.attempt, runner) == (attempt, worker) => take_over(state, attempt),
            Some(runner) => Reclaim::Adopting {
                attempt: state.postgres.attempt,
                worker: runner,
            },
        },
        (ReclaimStep::Act, Reclaim::TakingOver { attempt }) => take_over(state, attempt),
        (ReclaimStep::Act, Reclaim::Dropping { attempt, worker, next }) => {
            state.redis.drop_passed(attempt, worker);
            Reclaim::Dispatching { attempt: next }
        }
        (ReclaimStep::Act, Reclaim::Dispatching { attempt }) => {
            state.redis.dispatch(rules, attempt);
            Reclaim::Idle
        }
        (ReclaimStep::Act, Reclaim::Adopting { attempt, worker }) => {
            state.redis.adopt(rules, attempt, worker);
            Reclaim::Idle
        }
        (ReclaimStep::Act, Reclaim::Forgetting) => {
            state.redis.forget();
            Reclaim::Idle
        }
        (ReclaimStep::Act, Reclaim::Idle) => Reclaim::Idle,
    };
}

/// `Store::reclaim`, which looks at the row again, so that what was read before does not matter.
fn take_over(state: &mut State, attempt: u8) -> Reclaim {
    match state.postgres.reclaim(attempt) {
        false => Reclaim::Idle,
        true if state.postgres.is_done => Reclaim::Forgetting,
        true => Reclaim::Dispatching { attempt: attempt + 1 },
    }
}

/// `Queue::unknown`: Redis does not know the job, or as one that waits for Postgres.
fn is_unknown(state: &State) -> bool {
    matches!(state.redis.entry, None | Some(crate::redis::Entry::Deferred(_)))
}

fn is_unknown_running(state: &State) -> bool {
    state.postgres.running.is_some() && is_unknown(state)
}

fn is_unknown_queued(state: &State) -> bool {
    state.postgres.is_queued() && is_unknown(state)
}
