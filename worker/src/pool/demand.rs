//! How many sandboxes an environment should have ready: its floor, what came lately, and what schedules will ask for.
//!
//! What matters is how many jobs come in the time that a refill takes, for those are served by what is ready. The most that
//! came in any such time is remembered, and halved with every `idle` that passes, so that a burst which comes again finds
//! what it needs and a steady stream is met without a cold start. Pure: moments are durations since the pool was made.

use std::collections::VecDeque;
use std::time::Duration;

use crate::environment::Warm;

/// How much a new start changes what is believed of their length.
const START_WEIGHT: f64 = 0.2;

/// One environment's arrivals and what is expected.
#[derive(Debug)]
pub(super) struct Demand {
    // No older than a refill takes, and no more than the ceiling.
    arrivals: VecDeque<Duration>,
    // The most arrivals of one refill, as it was at this moment.
    peak: (f64, Duration),
    // How long a start takes, seconds.
    start: f64,
    // How many schedules will ask for, and until when that is believed.
    expected: (u32, Duration),
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            arrivals: VecDeque::new(),
            peak: (0.0, Duration::ZERO),
            start: 0.5,
            expected: (0, Duration::ZERO),
        }
    }
}

impl Demand {
    /// A job came for a sandbox; refill may be held back for `held_back` by it.
    pub(super) fn arrived(&mut self, warm: &Warm, held_back: Duration, now: Duration) {
        let refill = held_back + Duration::from_secs_f64(self.start);
        self.arrivals.push_back(now);
        let is_past = |at: &Duration| now.saturating_sub(*at) > refill;
        while self.arrivals.front().is_some_and(is_past) || self.arrivals.len() > warm.max as usize {
            self.arrivals.pop_front();
        }
        let came = f64::from(u32::try_from(self.arrivals.len()).unwrap_or(u32::MAX));
        self.peak = (self.peak_at(warm, now).max(came), now);
    }

    /// A start took so long.
    pub(super) fn started(&mut self, took: Duration) {
        self.start += START_WEIGHT * (took.as_secs_f64() - self.start);
    }

    /// Schedules will ask for so many; forgotten at `until` if nobody says it again.
    pub(super) fn expect(&mut self, count: u32, until: Duration) {
        self.expected = (count, until);
    }

    /// How many to have ready. An environment whose floor is 0 has nothing ready, whatever comes.
    pub(super) fn aim(&self, warm: &Warm, now: Duration) -> u32 {
        if warm.size == 0 {
            return 0;
        }
        let (count, until) = self.expected;
        let expected = if now < until { count } else { 0 };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and the ceiling"
        )]
        let lately = self.peak_at(warm, now).round() as u32;
        warm.size.max(lately).max(expected).min(warm.max)
    }

    fn peak_at(&self, warm: &Warm, now: Duration) -> f64 {
        let (peak, at) = self.peak;
        let half_lives = now.saturating_sub(at).as_secs_f64() / warm.idle.as_secs_f64().max(1.0);
        peak * 0.5_f64.powf(half_lives)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn warm() -> Warm {
        Warm {
            size: 2,
            max: 10,
            idle: 60 * S,
            ..Warm::default()
        }
    }

    /// Arrivals at these milliseconds, with a refill of 1.5 s.
    fn after(arrivals: impl IntoIterator<Item = u64>) -> Demand {
        let mut demand = Demand::default();
        for at in arrivals {
            demand.arrived(&warm(), S, Duration::from_millis(at));
        }
        demand
    }

    #[test]
    fn without_jobs_it_is_the_floor() {
        assert_eq!(Demand::default().aim(&warm(), S), 2);
    }

    #[test]
    fn a_burst_is_remembered_whole_up_to_the_ceiling_and_fades() {
        let burst = after((0..7).map(|n| n * 10));
        assert_eq!(burst.aim(&warm(), S), 7);
        assert_eq!(burst.aim(&warm(), 60 * S), 4);
        assert_eq!(burst.aim(&warm(), 600 * S), 2);
        assert_eq!(after((0..50).map(|n| n * 10)).aim(&warm(), S), 10);
    }

    #[test]
    fn a_stream_needs_what_comes_while_refill_is_under_way() {
        // Three a second for a minute: five in 1.5 s.
        let stream = after((0..180).map(|n| n * 333));
        assert_eq!(stream.aim(&warm(), 60 * S), 5);
        let slow = after((0..60).map(|n| n * 2_000));
        assert_eq!(slow.aim(&warm(), 120 * S), 2);
    }

    #[test]
    fn slower_starts_need_more_ready() {
        let mut demand = Demand::default();
        for _ in 0..30 {
            demand.started(3 * S);
        }
        for n in 0..180 {
            demand.arrived(&warm(), S, Duration::from_millis(n * 500));
        }
        assert_eq!(demand.aim(&warm(), 90 * S), 8);
    }

    #[test]
    fn schedules_are_expected_until_their_word_is_old() {
        let mut demand = Demand::default();
        demand.expect(6, 20 * S);
        assert_eq!((demand.aim(&warm(), 19 * S), demand.aim(&warm(), 20 * S)), (6, 2));
        demand.expect(99, 30 * S);
        assert_eq!(demand.aim(&warm(), 29 * S), 10);
    }

    #[test]
    fn an_environment_that_keeps_nothing_ready_does_so_whatever_comes() {
        let nothing = Warm { size: 0, ..warm() };
        let mut demand = after(0..9);
        demand.expect(9, 9 * S);
        assert_eq!(demand.aim(&nothing, S), 0);
    }
}
