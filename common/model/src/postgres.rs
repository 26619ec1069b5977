//! The job's row and the workers' `alive_until`. Each function is one transaction.

use crate::{ATTEMPTS_MAX, Drift, Rules, TTL, WORKERS};

/// What Postgres knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    /// `jobs.attempt`.
    pub(crate) attempt: u8,
    /// `jobs.worker_id` while it runs; `None` while it is queued.
    pub(crate) running: Option<usize>,
    /// Whether it has ended.
    pub(crate) is_done: bool,
    /// `jobs.losses`.
    pub(crate) losses: u8,
    /// Rows in `attempts` for each attempt; more than one is a broken rule.
    pub(crate) ends: [u8; ATTEMPTS_MAX as usize],
    /// What is left of each worker's `alive_until`, by the leader's clock.
    pub(crate) alive: [u8; WORKERS],
    /// Whether it is later than the time at which the reclaim duty's tick began, with which that compares it.
    pub(crate) spared: [bool; WORKERS],
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            attempt: 0,
            running: None,
            is_done: false,
            losses: 0,
            ends: [0; ATTEMPTS_MAX as usize],
            alive: [0; WORKERS],
            spared: [false; WORKERS],
        }
    }
}

impl Postgres {
    pub(crate) fn is_queued(&self) -> bool {
        !self.is_done && self.running.is_none()
    }

    pub(crate) fn is_current(&self, attempt: u8, worker: usize) -> bool {
        !self.is_done && self.attempt == attempt && self.running == Some(worker)
    }

    pub(crate) fn tick(&mut self) {
        for left in &mut self.alive {
            *left = left.saturating_sub(1);
        }
    }

    /// `store/claim.rs`, `take`: the row is queued and its attempt the one before.
    pub(crate) fn claim(&mut self, attempt: u8, worker: usize) -> bool {
        let is_free = self.is_queued() && self.attempt + 1 == attempt;
        if is_free {
            self.attempt = attempt;
            self.running = Some(worker);
        }
        is_free
    }

    /// `store/settle.rs`, `update`: `worker_id` and `attempt` are the fence. Answers whether the row changed.
    pub(crate) fn settle(&mut self, rules: Rules, attempt: u8, worker: usize, is_over: bool) -> bool {
        if rules.settle_is_fenced && !self.is_current(attempt, worker) {
            return false;
        }
        self.end(attempt, is_over);
        true
    }

    /// `store/reclaim.rs`: the row is locked, and then its worker's `alive_until` is looked at.
    pub(crate) fn reclaim(&mut self, attempt: u8) -> bool {
        let Some(worker) = self.running else { return false };
        if self.is_done || self.attempt != attempt || self.spared[worker] {
            return false;
        }
        self.losses += 1;
        self.end(attempt, false);
        true
    }

    fn end(&mut self, attempt: u8, is_over: bool) {
        self.ends[usize::from(attempt) - 1] += 1;
        self.running = None;
        self.is_done |= is_over || self.attempt >= ATTEMPTS_MAX;
    }

    /// `store/workers.rs`, `worker_alive_until`: the worker's clock plus a lease time, compared by the leader with its own.
    pub(crate) fn say_alive(&mut self, worker: usize, drift: Drift) {
        self.alive[worker] = TTL - u8::from(drift == Drift::Leader);
        // It is counted from now, and a tick under way began before.
        self.spared[worker] = true;
    }

    /// A tick of the reclaim duty begins.
    pub(crate) fn begin_reclaim(&mut self) {
        self.spared = self.alive.map(|left| left > 0);
    }
}
