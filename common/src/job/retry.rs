//! What is tried again, and how long a job waits between failures.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::FailureCode;

/// One rule of a job's `retry_on`: a code that is tried again although it usually is not, or, with a `!` before it, one
/// that is not although it usually is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RetryRule {
    /// Failures with this code are tried again.
    On(FailureCode),
    /// Failures with this code are final.
    Never(FailureCode),
}

impl RetryRule {
    /// Whether a failure with this code may be tried again under a job's rules. One that stands under both is not.
    pub fn allow(rules: &[String], code: FailureCode) -> bool {
        let has = |rule: Self| rules.contains(&rule.to_string());
        (code.is_transient() || has(Self::On(code))) && !has(Self::Never(code))
    }
}

impl fmt::Display for RetryRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(code) => f.write_str(code.as_str()),
            Self::Never(code) => write!(f, "!{}", code.as_str()),
        }
    }
}

impl From<RetryRule> for String {
    fn from(rule: RetryRule) -> Self {
        rule.to_string()
    }
}

impl TryFrom<String> for RetryRule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (name, rule): (&str, fn(FailureCode) -> Self) = match text.strip_prefix('!') {
            Some(name) => (name, Self::Never),
            None => (&text, Self::On),
        };
        FailureCode::parse(name).map(rule).ok_or_else(|| {
            let codes: Vec<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
            format!("{name} is no error code: {}", codes.join(", "))
        })
    }
}

/// Exponential backoff with full jitter: the nth delay is uniform between 0 and `initial × factor^(n-1)`, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backoff {
    /// Upper bound of the first delay.
    #[serde(with = "humantime_serde")]
    pub initial: Duration,
    /// Growth with each failure, 1 to 10.
    pub factor: f64,
    /// Upper bound of every delay.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_mins(5),
        }
    }
}

impl Backoff {
    /// The longest that the delay after `failures` failures (1 or more) may be.
    pub fn bound(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.initial.as_secs_f64() * self.factor.powi(exponent);
        if seconds.is_finite() && seconds < self.max.as_secs_f64() {
            Duration::from_secs_f64(seconds)
        } else {
            self.max
        }
    }

    /// The delay after `failures` failures. `spread` is a random number from 0 to 1; "full jitter" spreads jobs that
    /// failed together over the whole interval (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).
    pub fn delay(&self, failures: u32, spread: f64) -> Duration {
        self.bound(failures).mul_f64(spread.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rule_adds_a_code_or_takes_it_away() {
        let rules = ["nonzero_exit", "!sandbox_failed", "timeout", "!timeout"].map(str::to_owned);
        let allowed = FailureCode::ALL
            .into_iter()
            .filter(|code| RetryRule::allow(&rules, *code));
        let usual = FailureCode::ALL.into_iter().filter(|code| code.is_transient());
        let mut expected: Vec<_> = usual.filter(|code| *code != FailureCode::SandboxFailed).collect();
        expected.insert(0, FailureCode::NonzeroExit);
        assert_eq!(allowed.collect::<Vec<_>>(), expected);
        for code in FailureCode::ALL {
            for rule in [RetryRule::On(code), RetryRule::Never(code)] {
                assert_eq!(RetryRule::try_from(rule.to_string()), Ok(rule));
            }
        }
        assert!(
            RetryRule::try_from("!banana".to_owned())
                .unwrap_err()
                .starts_with("banana is no error code")
        );
    }

    #[test]
    fn the_bound_doubles_up_to_its_maximum() {
        let backoff = Backoff::default();
        assert_eq!(backoff.bound(1), Duration::from_secs(1));
        assert_eq!(backoff.bound(2), Duration::from_secs(2));
        assert_eq!(backoff.bound(9), Duration::from_secs(256));
        assert_eq!(backoff.bound(10), Duration::from_mins(5));
        assert_eq!(backoff.bound(u32::MAX), Duration::from_mins(5));
    }

    #[test]
    fn jitter_stays_between_nothing_and_the_bound() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_secs(2));
        assert_eq!(backoff.delay(3, 7.0), Duration::from_secs(4));
    }

    fn any_backoff() -> impl Strategy<Value = Backoff> {
        (0_u64..86_400_000, 1.0_f64..=10.0, 0_u64..86_400_000).prop_map(|(initial, factor, max)| Backoff {
            initial: Duration::from_millis(initial),
            factor,
            max: Duration::from_millis(max),
        })
    }

    proptest! {
        #[test]
        fn every_delay_is_below_its_bound_and_no_bound_above_the_maximum(
            backoff in any_backoff(), failures in 0_u32..10_000, spread in -1.0_f64..2.0
        ) {
            prop_assert!(backoff.bound(failures) <= backoff.max);
            prop_assert!(backoff.bound(failures) <= backoff.bound(failures + 1));
            prop_assert!(backoff.delay(failures, spread) <= backoff.bound(failures));
        }

        /// Full jitter: the whole interval, each part of it alike.
        #[test]
        fn a_delay_is_its_share_of_the_bound(backoff in any_backoff(), failures in 1_u32..100, spread in 0.0_f64..=1.0) {
            let wanted = backoff.bound(failures).as_secs_f64() * spread;
            prop_assert!((backoff.delay(failures, spread).as_secs_f64() - wanted).abs() < 1e-6);
        }
    }
}
