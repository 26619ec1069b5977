//! How many sandboxes may start at once: as many as the machine starts fastest.
//!
//! Its rate rises with the number of starts under way, up to some point, and falls beyond it; where that point lies differs
//! from machine to machine, and with what else runs there. So the rate is measured at the present number, the numbers beside
//! it are tried, and the better one stays. What was measured a minute ago is forgotten and tried again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How much one start changes what is believed of a rate.
const WEIGHT: f64 = 0.3;

/// How much faster another number must be to be chosen.
const BETTER: f64 = 1.03;

/// How long a rate beside the present one is believed.
const BELIEVED: Duration = Duration::from_mins(1);

/// What is known of the machine's rate of starts. Pure; moments are durations since it was made.
#[derive(Debug)]
struct Rates {
    max: usize,
    limit: usize,
    /// Starts a second with so many under way, and when that was measured.
    measured: Vec<Option<(f64, Duration)>>,
}

impl Rates {
    fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            max,
            // Half of the most is about the number of processors.
            limit: max.div_ceil(2),
            measured: vec![None; max + 2],
        }
    }

    /// A start ended well that had `among` under way with it, itself counted, and took so long.
    fn ended(&mut self, among: usize, took: Duration, now: Duration) {
        // Fewer than are allowed say nothing about the limit.
        if among != self.limit {
            return;
        }
        let rate = f64::from(u32::try_from(among).unwrap_or(u32::MAX)) / took.as_secs_f64().max(1e-3);
        let before = self.rate(among, now).unwrap_or(rate);
        let here = before + WEIGHT * (rate - before);
        self.measured[among] = Some((here, now));
        let is_better = |other: Option<f64>| other.is_none_or(|other| other > here * BETTER);
        if self.limit < self.max && is_better(self.rate(self.limit + 1, now)) {
            self.limit += 1;
        } else if self.limit > 1 && is_better(self.rate(self.limit - 1, now)) {
            self.limit -= 1;
        }
    }

    fn rate(&self, among: usize, now: Duration) -> Option<f64> {
        let (rate, at) = self.measured[among]?;
        (now.saturating_sub(at) < BELIEVED).then_some(rate)
    }
}

#[derive(Debug)]
struct State {
    running: usize,
    rates: Rates,
}

/// Lets starts begin. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Throttle {
    state: Arc<Mutex<State>>,
    freed: Arc<Notify>,
    epoch: Instant,
}

/// The right to start one; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Starting {
    throttle: Throttle,
    begun: Instant,
    among: usize,
}

impl Throttle {
    /// Never more than `max` at once.
    pub(super) fn new(max: usize) -> Self {
        let rates = Rates::new(max);
        Self {
            state: Arc::new(Mutex::new(State { running: 0, rates })),
            freed: Arc::new(Notify::new()),
            epoch: Instant::now(),
        }
    }

    /// Waits until one more may start.
    pub(super) async fn enter(&self) -> Starting {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Heard from here on, so that no place that is given back is missed.
            freed.as_mut().enable();
            if let Some(among) = self.try_enter() {
                return Starting {
                    throttle: self.clone(),
                    begun: Instant::now(),
                    among,
                };
            }
            freed.await;
        }
    }

    fn try_enter(&self) -> Option<usize> {
        let mut state = self.lock();
        if state.running >= state.rates.limit {
            return None;
        }
        state.running += 1;
        Some(state.running)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starting {
    /// How long ago it began.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The start went well.
    pub(super) fn succeeded(self) {
        let took = self.begun.elapsed();
        let mut state = self.throttle.lock();
        // Who began first had fewer beside it at its begin, and the same as the others in the end.
        let among = self.among.max(state.running);
        state.rates.ended(among, took, self.throttle.epoch.elapsed());
        let limit = u32::try_from(state.rates.limit).unwrap_or(u32::MAX);
        metrics::gauge!("hothouse_sandbox_starts_limit").set(limit);
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.throttle.lock().running -= 1;
        self.throttle.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the limit goes on a machine that makes so many a second with 1, 2, … under way.
    fn settles(rates: &mut Rates, machine: &[f64], from: Duration) -> Vec<usize> {
        let mut limits = Vec::new();
        for n in 0..60 {
            let among = rates.limit;
            let took = Duration::from_secs_f64(f64::from(u32::try_from(among).unwrap()) / machine[among - 1]);
            rates.ended(among, took, from + Duration::from_millis(n * 300));
            limits.push(rates.limit);
        }
        limits.split_off(20)
    }

    #[test]
    fn it_stays_where_the_machine_is_fastest() {
        for (machine, best) in [
            ([5.9, 8.0, 8.4, 6.2], 3),
            ([5.0, 8.0, 10.0, 12.0], 4),
            ([9.0, 8.0, 7.0, 6.0], 1),
            ([6.0, 8.0, 7.0, 6.0], 2),
        ] {
            let limits = settles(&mut Rates::new(4), &machine, Duration::ZERO);
            assert!(limits.iter().all(|limit| *limit == best), "{machine:?}: {limits:?}");
        }
    }

    #[test]
    fn it_follows_a_machine_that_changes() {
        let mut rates = Rates::new(4);
        settles(&mut rates, &[5.0, 8.0, 10.0, 12.0], Duration::ZERO);
        let later = Duration::from_mins(5);
        assert_eq!(
            settles(&mut rates, &[6.0, 4.0, 3.0, 2.0], later).last(),
            Some(&1),
            "somebody else uses it now"
        );
    }

    #[test]
    fn fewer_than_allowed_say_nothing() {
        let mut rates = Rates::new(4);
        rates.ended(1, Duration::from_millis(1), Duration::ZERO);
        assert_eq!((rates.limit, rates.measured[1]), (2, None));
    }

    #[tokio::test]
    async fn no_more_start_at_once_than_are_let_in_and_a_place_is_given_back_by_drop() {
        let throttle = Throttle::new(2);
        let first = throttle.enter().await;
        assert!(throttle.try_enter().is_none(), "half of the most at first");
        let (second, ()) = tokio::join!(throttle.enter(), async { drop(first) });
        second.succeeded();
        assert_eq!(throttle.lock().running, 0);
    }
}
