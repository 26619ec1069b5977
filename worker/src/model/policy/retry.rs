//! When a call is tried again in place: a pure policy. It is asked only before the first token.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::error::{Class, Error, Phase};

/// How a call that failed before its first token is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// Retries of one model, after the first try.
    pub retries_max: u32,
    /// Longest pause before the first retry; it doubles with each.
    #[serde(with = "humantime_serde")]
    pub backoff_initial: Duration,
    /// Longest pause of all.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// The longest `Retry-After` that is waited for here. When the provider asks for more, the job is put back
    /// instead, so that it does not hold its slot.
    #[serde(with = "humantime_serde")]
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries_max: 2,
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(8),
            retry_after_max: Duration::from_secs(10),
        }
    }
}

impl RetryPolicy {
    /// The pause before the next try of the same model, or none when it is not tried again.
    ///
    /// `retries` were made already; `random` is in 0 to 1 and spreads the pause over its whole length (full jitter).
    pub fn pause(&self, retries: u32, error: &Error, random: f64) -> Option<Duration> {
        let is_worth_it = match (error.class(), error) {
            // Nothing was tried.
            (_, Error::Held { .. }) => false,
            (Class::Transient, _) => true,
            // Half a minute or more is gone already when the other two phases time out.
            (Class::Timeout, Error::Timeout { phase, .. }) => *phase == Phase::Connect,
            _ => false,
        };
        if !is_worth_it || retries >= self.retries_max {
            return None;
        }
        let spread = |longest: Duration| longest.mul_f64(random.clamp(0.0, 1.0));
        match error.retry_after() {
            Some(wanted) if wanted > self.retry_after_max => None,
            // Everybody was told the same moment, so the spread comes on top.
            Some(wanted) => Some(wanted + spread(self.backoff_initial)),
            None => {
                let doubled = self.backoff_initial.saturating_mul(2_u32.saturating_pow(retries));
                Some(spread(doubled.min(self.backoff_max)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Reason;

    const POLICY: RetryPolicy = RetryPolicy {
        retries_max: 5,
        backoff_initial: Duration::from_millis(500),
        backoff_max: Duration::from_secs(3),
        retry_after_max: Duration::from_secs(10),
    };

    #[test]
    fn the_pause_doubles_up_to_its_longest_and_is_spread_over_all_of_it() {
        let error = Error::Cut(None);
        let longest: Vec<u128> = (0..5)
            .filter_map(|n| POLICY.pause(n, &error, 1.0))
            .map(|d| d.as_millis())
            .collect();
        assert_eq!(longest, [500, 1_000, 2_000, 3_000, 3_000]);
        assert_eq!(POLICY.pause(3, &error, 0.0), Some(Duration::ZERO));
        assert_eq!(POLICY.pause(5, &error, 0.5), None);
    }

    #[test]
    fn retry_after_is_a_floor_and_one_that_is_too_long_gives_the_slot_back() {
        let pause = POLICY.pause(
            0,
            &Error::refused(Reason::RateLimited, Some(Duration::from_secs(10))),
            1.0,
        );
        assert_eq!(pause, Some(Duration::from_millis(10_500)));
        assert_eq!(
            POLICY.pause(
                0,
                &Error::refused(Reason::RateLimited, Some(Duration::from_secs(11))),
                0.0
            ),
            None
        );
    }

    #[test]
    fn what_fails_again_is_not_tried_again() {
        for reason in [
            Reason::SpendLimit,
            Reason::Authentication,
            Reason::InvalidRequest,
            Reason::NotFound,
        ] {
            assert_eq!(
                POLICY.pause(0, &Error::refused(reason, Some(Duration::from_secs(1))), 0.5),
                None,
                "{reason:?}"
            );
        }
        let late = |phase| Error::Timeout {
            phase,
            limit: Duration::from_mins(1),
        };
        assert_eq!(POLICY.pause(0, &late(Phase::FirstByte), 0.5), None);
        assert!(POLICY.pause(0, &late(Phase::Connect), 0.5).is_some());
        assert_eq!(POLICY.pause(0, &Error::Cancelled, 0.5), None);
    }
}
