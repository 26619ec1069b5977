//! A model of leases, fences and re-registration, small enough to look at every order of steps.
//!
//! One job, two workers and the leader's two duties, over one Postgres and one Redis. Each step of a process is one round
//! trip, so between any two steps everybody else may act, time may pass, and the process may stand still for as long as it
//! likes: a paused process is one that takes no step. What may go wrong is bounded by [`Protocol::faults`]: a lost
//! question or answer, a worker's death, a leader's, a wipe of Redis, and its absence for any time.
//!
//! Time is counted in units of which a lease has [`TTL`] and a sandbox's permission [`RUN_ON`]: one less, as with the real
//! 6 s and 5 s. Every timer says how much is left of it, or how old it is, never a date; so states repeat, and there are
//! finitely many.
//!
//! [`Rules`] are what the protocol rests on. Tests take each out and see the model checker find what breaks.

mod heartbeat;
mod leader;
mod postgres;
mod recover;
mod redis;
mod worker;

use stateright::{Model, Property};

use leader::{Rebuild, Reclaim};
use postgres::Postgres;
use redis::Redis;
use worker::Worker;

/// Units of time that a lease holds: `leases.ttl`.
pub const TTL: u8 = 2;

/// Units of time that a sandbox may run after the moment a renewal was asked for: `leases.run_on`.
pub const RUN_ON: u8 = 1;

/// Attempts after which the job fails instead of being tried again.
pub const ATTEMPTS_MAX: u8 = 2;

/// Workers.
pub const WORKERS: usize = 2;

/// What keeps attempts apart. A test takes one out.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule that is there or not")]
pub struct Rules {
    /// A settlement names the attempt and the worker, and changes nothing when the row does not.
    pub settle_is_fenced: bool,
    /// A worker whom Redis does not know asks Postgres and registers; without it, it just goes on.
    pub unknown_registers: bool,
    /// After a wipe a lease time passes before anything is claimed or taken over.
    pub wipe_waits: bool,
    /// A renewal counts from the moment before it was asked for, not from when its answer is read.
    pub renewal_counts_from_asking: bool,
    /// Redis releases no attempt while the lease of the one before has not passed.
    pub next_attempt_waits: bool,
    /// A running row that Redis does not know gets a lease first; without it, it is taken over at once.
    pub unknown_is_adopted: bool,
    /// A worker that said in Postgres that it lives then looks whether the row is its own.
    pub alive_is_confirmed: bool,
    /// What Postgres confirmed late begins only if its lease lives; without it, it is registered once more.
    pub late_renews: bool,
    /// What a registration allows counts from when its worker said that it lives, and one that took longer is lost.
    pub registration_is_timely: bool,
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self {
        settle_is_fenced: true,
        unknown_registers: true,
        wipe_waits: true,
        renewal_counts_from_asking: true,
        next_attempt_waits: true,
        unknown_is_adopted: true,
        alive_is_confirmed: true,
        late_renews: true,
        registration_is_timely: true,
    };
}

/// How clocks differ, by one unit of time: the difference of a lease and a sandbox's permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drift {
    /// They do not.
    None,
    /// The clock of a sandbox loses a unit in each permission.
    Sandbox,
    /// The leader's clock is ahead of the workers': `alive_until` passes early.
    Leader,
    /// The clock of a sandbox loses two units: more than the protocol allows for.
    TooMuch,
}

/// The protocol to check.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The rules that hold.
    pub rules: Rules,
    /// How many things may go wrong.
    pub faults: u8,
    /// How clocks may differ.
    pub drifts: Vec<Drift>,
    /// Whether every state is asked if the job ends from there, which takes long.
    pub checks_ending: bool,
}

/// Everything there is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    pub(crate) workers: [Worker; WORKERS],
    pub(crate) rebuild: Rebuild,
    pub(crate) reclaim: Reclaim,
    pub(crate) drift: Drift,
    pub(crate) faults_left: u8,
    /// A settlement was accepted from an attempt that was not the current one.
    pub(crate) stale_commit: bool,
    /// A sandbox began for an attempt after which another had begun, or the job had ended.
    pub(crate) stale_start: bool,
}

/// One step of somebody, or a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A unit of time passes.
    Tick,
    /// A worker's attempt takes its next step.
    Work(usize, worker::Work),
    /// A worker's heartbeat takes its next step.
    Beat(usize, heartbeat::Beat),
    /// The redispatch duty takes its next step.
    Rebuild(leader::RebuildStep),
    /// The reclaim duty takes its next step.
    Reclaim(leader::ReclaimStep),
    /// Something goes wrong.
    Fault(Fault),
    /// Redis answers again.
    RedisIsBack,
}

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Redis forgets everything.
    Wipe,
    /// Redis answers nobody, until it is back.
    Away,
    /// A worker dies, and its sandbox with it.
    Death(usize),
    /// The leader dies; the next one knows nothing of what it was doing.
    LeaderDeath,
    /// Redis did what a worker's heartbeat asked for, or did not, and no answer comes.
    BeatUnanswered(usize, bool),
    /// Redis leased the job to a worker that never hears of it.
    ClaimUnanswered(usize),
    /// Redis renewed what was confirmed late, and the worker never hears of it.
    LateUnanswered(usize),
    /// Postgres confirmed a claim, and the worker believes that it did not.
    ConfirmUnanswered(usize),
    /// The end of a lease was never asked for.
    AckLost(usize),
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let state = |(drift, has_place)| State {
            postgres: Postgres::default(),
            redis: Redis {
                has_place,
                ..Redis::default()
            },
            workers: [Worker::default(); WORKERS],
            rebuild: Rebuild::default(),
            reclaim: Reclaim::default(),
            drift,
            faults_left: self.faults,
            stale_commit: false,
            stale_start: false,
        };
        let both = self.drifts.iter().flat_map(|drift| [(*drift, false), (*drift, true)]);
        both.map(state).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // No attempt should begin after that, or go on for long.
        if state.postgres.is_done && state.workers.iter().all(Worker::is_idle) {
            return;
        }
        actions.push(Action::Tick);
        for worker in 0..WORKERS {
            worker::work_steps(state, worker, actions);
            heartbeat::beat_steps(state, worker, actions);
        }
        if state.postgres.is_done {
            return;
        }
        leader::rebuild_steps(state, self.rules, actions);
        leader::reclaim_steps(state, actions);
        if state.redis.is_away {
            actions.push(Action::RedisIsBack);
        }
        if state.faults_left > 0 {
            faults(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        match action {
            Action::Tick => state.tick(),
            Action::Work(worker, step) => worker::work(&mut state, self.rules, worker, step),
            Action::Beat(worker, step) => heartbeat::beat(&mut state, self.rules, worker, step),
            Action::Rebuild(step) => leader::rebuild(&mut state, self.rules, step),
            Action::Reclaim(step) => leader::reclaim(&mut state, self.rules, step),
            Action::Fault(fault) => state.go_wrong(fault),
            Action::RedisIsBack => state.redis.is_away = false,
        }
        state.see_stale_starts(last);
        state.forget_what_cannot_matter();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one sandbox runs", |_, state: &State| state.sandboxes() <= 1),
            Property::always("a stale attempt never commits", |_, state: &State| !state.stale_commit),
            Property::always("no sandbox starts for a stale attempt", |_, state: &State| {
                !state.stale_start
            }),
            Property::always("an attempt ends once", |_, state: &State| {
                state.postgres.ends.iter().all(|ends| *ends <= 1)
            }),
            Property::always("the job ends when nothing more goes wrong", |protocol: &Self, state| {
                !protocol.checks_ending || protocol.ends(state)
            }),
            // Without these the model might hold because nothing ever happens in it.
            Property::sometimes("an attempt outlives a wipe", |_, state: &State| {
                state.redis.wipes > 0
                    && state.postgres.is_done
                    && state.postgres.attempt == 1
                    && state.postgres.ends[0] == 1
            }),
            Property::sometimes(
                "a lost attempt is followed by another that ends well",
                |_, state: &State| state.postgres.is_done && state.postgres.losses == 1 && state.postgres.attempt == 2,
            ),
        ]
    }
}

fn faults(state: &State, actions: &mut Vec<Action>) {
    let mut add = |fault| actions.push(Action::Fault(fault));
    add(Fault::Wipe);
    add(Fault::LeaderDeath);
    if !state.redis.is_away {
        add(Fault::Away);
    }
    // One of them stays, so that the job can end.
    if state.workers.iter().all(|worker| !worker.is_dead) {
        (0..WORKERS).for_each(|worker| add(Fault::Death(worker)));
    }
    for (index, worker) in state.workers.iter().enumerate().filter(|(_, worker)| !worker.is_dead) {
        if worker.may_ask(state) {
            add(Fault::BeatUnanswered(index, true));
            add(Fault::BeatUnanswered(index, false));
        }
        match worker.work {
            worker::Work::Idle if state.redis.has_ready() => add(Fault::ClaimUnanswered(index)),
            worker::Work::Claimed { .. } => add(Fault::ConfirmUnanswered(index)),
            worker::Work::Late { .. } if !state.redis.is_away => add(Fault::LateUnanswered(index)),
            worker::Work::Settled { .. } => add(Fault::AckLost(index)),
            _ => {}
        }
    }
}

impl State {
    fn sandboxes(&self) -> usize {
        self.workers.iter().filter(|worker| worker.sandbox.is_some()).count()
    }

    fn see_stale_starts(&mut self, last: &Self) {
        for (worker, before) in self.workers.iter().zip(&last.workers) {
            let starts = worker.sandbox.is_some() && before.sandbox.is_none();
            let is_last = worker.held() == Some(self.postgres.attempt) && !self.postgres.is_done;
            self.stale_start |= starts && !is_last;
        }
    }

    /// Makes states equal that differ only in what nobody will ask for.
    fn forget_what_cannot_matter(&mut self) {
        for worker in &mut self.workers {
            worker.forget_what_cannot_matter();
        }
        for (index, alive) in self.postgres.alive.iter_mut().enumerate() {
            // As if it had passed: a takeover is never less likely for it.
            if self.postgres.running != Some(index) {
                *alive = 0;
            }
        }
        if self.reclaim == Reclaim::Idle {
            self.postgres.spared = [false; WORKERS];
        }
        if let (Some((age, _)), true) = (&mut self.redis.begun, self.redis.is_open) {
            *age = TTL;
        }
    }

    fn tick(&mut self) {
        self.redis.tick();
        self.postgres.tick();
        for worker in &mut self.workers {
            worker.tick();
        }
    }

    fn go_wrong(&mut self, fault: Fault) {
        self.faults_left -= 1;
        match fault {
            Fault::Wipe => self.redis.wipe(),
            Fault::Away => self.redis.is_away = true,
            Fault::Death(worker) => {
                self.workers[worker] = Worker {
                    is_dead: true,
                    ..Worker::default()
                };
            }
            Fault::LeaderDeath => {
                self.rebuild = Rebuild::default();
                self.reclaim = Reclaim::default();
            }
            Fault::BeatUnanswered(worker, is_heard) => heartbeat::beat_unanswered(self, worker, is_heard),
            Fault::ClaimUnanswered(worker) => {
                self.redis.claim(worker);
            }
            Fault::LateUnanswered(worker) => worker::late_unanswered(self, worker),
            Fault::ConfirmUnanswered(worker) => worker::confirm_unanswered(self, worker),
            Fault::AckLost(worker) => self.workers[worker].work = worker::Work::Idle,
        }
    }
}
