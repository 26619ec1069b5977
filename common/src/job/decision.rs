//! What becomes of a job when an attempt ends: the only place where a failure turns into a retry or an end.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::failure::{Failure, FailureCode};
use super::retry::{Backoff, RetryRule};
use super::wait::Wait;

/// Workers that may die under a job before it is held to be what kills them.
pub const LOSSES_MAX: u32 = 3;

/// Losses after which a job is claimed alone: its worker holds nothing else while it runs. So the last loss, the one that
/// condemns, was nobody else's doing, and condemns nobody else.
pub const ALONE_AFTER: u32 = LOSSES_MAX - 1;

/// How an attempt ended, as its worker saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// Badly. `retry_after` is what the other side asked for, such as a provider's `Retry-After`.
    Failed {
        /// Why.
        failure: Failure,
        /// The least that the next attempt must wait.
        retry_after: Option<Duration>,
    },
    /// It obeyed a request to cancel.
    Cancelled,
    /// Its worker is being drained: it costs the job nothing.
    Interrupted,
    /// It gave up its worker until something else has ended.
    Waits(Wait),
}

/// What the decision needs to know of the job.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// Failures so far, this one not counted.
    pub failures: u32,
    /// Losses so far, this one not counted.
    pub losses: u32,
    /// Failures after which it is not tried again.
    pub max_attempts: u32,
    /// How long it waits between failures.
    pub backoff: Backoff,
    /// What is tried again otherwise than usual: see [`RetryRule`].
    pub retry_on: &'a [String],
    /// Whether somebody asked to cancel it.
    pub cancel_requested: bool,
}

/// What becomes of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It succeeded.
    Succeed,
    /// It failed for good.
    Fail(Failure),
    /// It is cancelled.
    Cancel,
    /// It is tried again at this time.
    RetryAt(DateTime<Utc>, Failure),
    /// It is queued again at once and nothing counts against it.
    GiveBack,
    /// It waits.
    Wait(Wait),
}

/// Decides what an outcome means. `spread` is a random number from 0 to 1 for the jitter.
pub fn settle(outcome: Outcome, counts: Counts<'_>, spread: f64, now: DateTime<Utc>) -> Decision {
    match outcome {
        Outcome::Succeeded => Decision::Succeed,
        Outcome::Cancelled => Decision::Cancel,
        Outcome::Waits(_) | Outcome::Interrupted if counts.cancel_requested => Decision::Cancel,
        Outcome::Waits(wait) => Decision::Wait(wait),
        Outcome::Interrupted => Decision::GiveBack,
        Outcome::Failed { failure, retry_after } => {
            let failures = counts.failures.saturating_add(1);
            let retryable = RetryRule::allow(counts.retry_on, failure.code);
            if counts.cancel_requested {
                Decision::Cancel
            } else if retryable && failures < counts.max_attempts {
                let delay = counts
                    .backoff
                    .delay(failures, spread)
                    .max(retry_after.unwrap_or_default());
                Decision::RetryAt(now + delay, failure)
            } else {
                Decision::Fail(failure)
            }
        }
    }
}

/// Decides what becomes of a job whose worker was lost.
pub fn reclaim(counts: Counts<'_>) -> Decision {
    if counts.cancel_requested {
        Decision::Cancel
    } else if !RetryRule::allow(counts.retry_on, FailureCode::WorkerLost) {
        let message = "the worker that ran it died, and it is not to run twice";
        Decision::Fail(Failure::new(FailureCode::WorkerLost, message))
    } else if counts.losses.saturating_add(1) >= LOSSES_MAX {
        let message = format!("{LOSSES_MAX} workers died while they ran this job");
        Decision::Fail(Failure::new(FailureCode::Poisoned, message))
    } else {
        Decision::GiveBack
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::job::wait::Until;

    const RETRY_ON: &[String] = &[];

    fn counts(failures: u32) -> Counts<'static> {
        Counts {
            failures,
            losses: 0,
            max_attempts: 3,
            backoff: Backoff::default(),
            retry_on: RETRY_ON,
            cancel_requested: false,
        }
    }

    fn failed(code: FailureCode) -> Outcome {
        Outcome::Failed {
            failure: Failure::new(code, "x"),
            retry_after: None,
        }
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    #[test]
    fn a_programs_own_answer_is_not_repeated() {
        let decision = settle(failed(FailureCode::NonzeroExit), counts(0), 0.5, now());
        assert!(matches!(decision, Decision::Fail(failure) if failure.code == FailureCode::NonzeroExit));
    }

    #[test]
    fn a_code_named_in_retry_on_is_repeated() {
        let codes = ["nonzero_exit".to_owned()];
        let counts = Counts {
            retry_on: &codes,
            ..counts(1)
        };
        let decision = settle(failed(FailureCode::NonzeroExit), counts, 0.5, now());
        assert!(matches!(decision, Decision::RetryAt(at, _) if at == now() + Duration::from_secs(1)));
    }

    #[test]
    fn a_transient_failure_is_repeated_until_max_attempts() {
        assert!(matches!(
            settle(failed(FailureCode::SandboxFailed), counts(1), 1.0, now()),
            Decision::RetryAt(..)
        ));
        assert!(matches!(
            settle(failed(FailureCode::SandboxFailed), counts(2), 1.0, now()),
            Decision::Fail(_)
        ));
    }

    #[test]
    fn retry_after_is_the_least_delay() {
        let wait = Duration::from_secs(40);
        let outcome = Outcome::Failed {
            failure: Failure::new(FailureCode::ModelFailed, "busy"),
            retry_after: Some(wait),
        };
        assert!(matches!(settle(outcome, counts(0), 0.0, now()), Decision::RetryAt(at, _) if at == now() + wait));
    }

    #[test]
    fn a_drained_worker_costs_nothing() {
        assert_eq!(settle(Outcome::Interrupted, counts(2), 0.0, now()), Decision::GiveBack);
    }

    #[test]
    fn a_request_to_cancel_wins_over_every_retry() {
        let counts = Counts {
            cancel_requested: true,
            ..counts(0)
        };
        for outcome in [
            failed(FailureCode::SandboxFailed),
            Outcome::Interrupted,
            Outcome::Waits(Wait::children(Until::AllEnded)),
            Outcome::Cancelled,
        ] {
            assert_eq!(settle(outcome, counts, 0.0, now()), Decision::Cancel);
        }
        assert_eq!(settle(Outcome::Succeeded, counts, 0.0, now()), Decision::Succeed);
        assert_eq!(reclaim(counts), Decision::Cancel);
    }

    #[test]
    fn a_job_that_is_not_to_run_twice_fails_with_its_worker() {
        let rules = ["!worker_lost".to_owned()];
        let counts = Counts {
            retry_on: &rules,
            ..counts(0)
        };
        assert!(matches!(reclaim(counts), Decision::Fail(f) if f.code == FailureCode::WorkerLost));
    }

    #[test]
    fn the_third_lost_worker_poisons() {
        assert_eq!(reclaim(Counts { losses: 1, ..counts(0) }), Decision::GiveBack);
        assert!(
            matches!(reclaim(Counts { losses: 2, ..counts(0) }), Decision::Fail(f) if f.code == FailureCode::Poisoned)
        );
    }

    proptest! {
        /// Whatever failed: it is tried again only for a cause that may pass or that the job names, never beyond its
        /// attempts, never earlier than the other side asked for, and never when somebody wants it to stop.
        #[test]
        fn a_retry_keeps_to_all_its_rules(
            code in proptest::sample::select(FailureCode::ALL.to_vec()),
            named in proptest::sample::subsequence(FailureCode::ALL.to_vec(), 0..=3),
            never in proptest::sample::subsequence(FailureCode::ALL.to_vec(), 0..=3),
            (failures, max_attempts) in (0_u32..6, 1_u32..6),
            wait_ms in proptest::option::of(0_u64..1_000_000),
            (spread, cancel_requested) in (0.0_f64..=1.0, proptest::bool::ANY),
        ) {
            let rules = named.iter().map(|code| RetryRule::On(*code));
            let retry_on: Vec<String> = rules
                .chain(never.iter().map(|code| RetryRule::Never(*code)))
                .map(|rule| rule.to_string())
                .collect();
            let counts = Counts { max_attempts, retry_on: &retry_on, cancel_requested, ..counts(failures) };
            let retry_after = wait_ms.map(Duration::from_millis);
            let outcome = Outcome::Failed { failure: Failure::new(code, "x"), retry_after };
            let may = RetryRule::allow(&retry_on, code) && failures + 1 < max_attempts;
            match settle(outcome, counts, spread, now()) {
                Decision::Cancel => prop_assert!(cancel_requested),
                Decision::RetryAt(at, failure) => {
                    prop_assert!(may && !cancel_requested && failure.code == code);
                    prop_assert!(at >= now() + retry_after.unwrap_or_default());
                    let latest = counts.backoff.bound(failures + 1).max(retry_after.unwrap_or_default());
                    prop_assert!(at <= now() + latest);
                }
                Decision::Fail(failure) => prop_assert!(!may && !cancel_requested && failure.code == code),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
