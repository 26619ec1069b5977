//! What to start and what to retire: the pool's decisions, without any of its doing.
//!
//! Everything here is a pure function of counts, times and settings, so that the tests need neither a clock nor an
//! engine. Moments are durations since the pool was made.

use std::time::Duration;

use crate::environment::Warm;

/// How the pool decides, the same for all environments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pace {
    /// Refill waits until no job has come for this long: starting sandboxes steals the processors from claims.
    pub(super) quiet: Duration,
    /// But it waits no longer than this in all.
    pub(super) quiet_max: Duration,
    /// The delay after the first failed start; each further one doubles it.
    pub(super) backoff: Duration,
    /// The longest delay.
    pub(super) backoff_max: Duration,
}

/// One environment's sandboxes, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Being started.
    pub(super) creating: u32,
    /// Ready.
    pub(super) warm: u32,
    /// In use by a job.
    pub(super) leased: u32,
    /// Kept for whoever used them last.
    pub(super) kept: u32,
    /// Being destroyed: they still take memory.
    pub(super) retiring: u32,
    /// Jobs that wait for one.
    pub(super) waiting: u32,
}

impl Counts {
    /// All that exist or soon will.
    pub(super) fn total(self) -> u32 {
        self.creating + self.warm + self.leased + self.kept + self.retiring
    }
}

/// What has happened lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recent {
    /// The last check-out.
    pub(super) last_check_out: Option<Duration>,
    /// The first check-out that refill has not answered yet.
    pub(super) short_since: Option<Duration>,
    /// Failed starts since the last that succeeded.
    pub(super) failures: u32,
    /// The last failed start.
    pub(super) last_failure: Option<Duration>,
}

/// How many to start now, and when to look again should nothing happen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// How many.
    pub(super) count: u32,
    /// When a reason not to start passes.
    pub(super) look_again: Option<Duration>,
}

/// How many sandboxes to start.
///
/// Jobs that wait come first and are held back by nothing but the ceiling and failures; the floor is filled when
/// claims are quiet.
pub(super) fn start(counts: Counts, recent: Recent, warm: &Warm, pace: &Pace, now: Duration) -> Start {
    let nothing = |look_again| Start { count: 0, look_again };
    let wanted = (warm.size + counts.waiting).saturating_sub(counts.warm + counts.creating);
    let count = wanted.min(warm.max.saturating_sub(counts.total()));
    if count == 0 {
        return nothing(None);
    }
    if let Some(at) = retry_at(recent, pace).filter(|at| *at > now) {
        return nothing(Some(at));
    }
    let urgent = counts.waiting.saturating_sub(counts.creating).min(count);
    match refill_at(recent, pace).filter(|at| *at > now) {
        Some(at) if urgent < count => Start {
            count: urgent,
            look_again: Some(at),
        },
        // After a failure one start shows whether it works again; a dozen would only fail with it.
        _ if recent.failures > 0 => Start {
            count: u32::from(counts.creating == 0),
            look_again: None,
        },
        _ => Start {
            count,
            look_again: None,
        },
    }
}

/// How many of those that are kept must make room: for jobs that wait, and for the floor.
pub(super) fn evict(counts: Counts, warm: &Warm) -> u32 {
    let wanted = (warm.size + counts.waiting).saturating_sub(counts.warm + counts.creating);
    let room = warm.max.saturating_sub(counts.total()) + counts.retiring;
    wanted.saturating_sub(room).min(counts.kept)
}

/// When refill may go on after claims; none when it was not disturbed.
fn refill_at(recent: Recent, pace: &Pace) -> Option<Duration> {
    let quiet_at = recent.last_check_out? + pace.quiet;
    let latest = recent.short_since? + pace.quiet_max;
    Some(quiet_at.min(latest))
}

/// When to try again after failures; none when the last start worked.
pub(super) fn retry_at(recent: Recent, pace: &Pace) -> Option<Duration> {
    let doublings = recent.failures.checked_sub(1)?.min(16);
    let delay = pace.backoff.saturating_mul(1 << doublings).min(pace.backoff_max);
    Some(recent.last_failure? + delay)
}

/// Which warm sandboxes to retire, as indices into the list of when each was started, oldest first: those that are
/// too old, and those beyond the floor that no job has come for.
pub(super) fn retire(started: &[Duration], warm: &Warm, now: Duration) -> Vec<usize> {
    let is_older = |index: &usize, limit: Duration| now.saturating_sub(started[*index]) >= limit;
    let too_old: Vec<usize> = (0..started.len()).filter(|i| is_older(i, warm.age)).collect();
    let left = started.len() - too_old.len();
    let beyond_floor = left.saturating_sub(warm.size as usize);
    let idle = (too_old.len()..started.len())
        .filter(|i| is_older(i, warm.idle))
        .take(beyond_floor);
    too_old.iter().copied().chain(idle).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace {
            quiet: S,
            quiet_max: 5 * S,
            backoff: S,
            backoff_max: 30 * S,
        }
    }

    fn warm() -> Warm {
        Warm {
            size: 3,
            max: 6,
            idle: 10 * S,
            age: 100 * S,
            keep: 20 * S,
            claude_code: 0,
        }
    }

    fn start_at(now: Duration, counts: Counts, recent: Recent) -> (u32, Option<Duration>) {
        let start = start(counts, recent, &warm(), &pace(), now);
        (start.count, start.look_again)
    }

    #[test]
    fn an_empty_pool_is_filled_to_its_floor_and_no_further() {
        let counts = Counts::default();
        assert_eq!(start_at(S, counts, Recent::default()), (3, None));
        let counts = Counts {
            warm: 1,
            creating: 2,
            leased: 2,
            ..counts
        };
        assert_eq!(start_at(S, counts, Recent::default()), (0, None));
    }

    #[test]
    fn the_ceiling_counts_everything_that_exists() {
        let counts = Counts {
            leased: 4,
            retiring: 1,
            waiting: 3,
            ..Counts::default()
        };
        assert_eq!(start_at(S, counts, Recent::default()), (1, None));
    }

    #[test]
    fn those_that_are_kept_make_room_for_jobs_and_for_the_floor() {
        let counts = Counts {
            warm: 3,
            kept: 3,
            ..Counts::default()
        };
        assert_eq!(evict(counts, &warm()), 0, "nobody wants their places");
        assert_eq!(
            evict(
                Counts {
                    waiting: 1,
                    warm: 0,
                    kept: 5,
                    leased: 1,
                    ..counts
                },
                &warm()
            ),
            4
        );
        assert_eq!(
            evict(
                Counts {
                    warm: 0,
                    kept: 4,
                    leased: 1,
                    ..counts
                },
                &warm()
            ),
            2
        );
        let under_way = Counts {
            warm: 0,
            kept: 4,
            retiring: 2,
            ..counts
        };
        assert_eq!(evict(under_way, &warm()), 1, "those that are going count as room");
        assert_eq!(
            evict(
                Counts {
                    waiting: 9,
                    leased: 6,
                    kept: 0,
                    warm: 0,
                    ..counts
                },
                &warm()
            ),
            0
        );
    }

    #[test]
    fn refill_is_held_back_during_a_burst_but_not_for_ever() {
        let counts = Counts {
            warm: 1,
            leased: 2,
            ..Counts::default()
        };
        let burst = |last: Duration| Recent {
            last_check_out: Some(last),
            short_since: Some(10 * S),
            ..Recent::default()
        };
        assert_eq!(start_at(12 * S, counts, burst(12 * S)), (0, Some(13 * S)));
        assert_eq!(start_at(14 * S, counts, burst(14 * S)), (0, Some(15 * S)));
        assert_eq!(start_at(15 * S, counts, burst(15 * S)), (2, None));
    }

    #[test]
    fn a_job_that_waits_is_not_held_back() {
        let counts = Counts {
            leased: 2,
            waiting: 1,
            ..Counts::default()
        };
        let recent = Recent {
            last_check_out: Some(12 * S),
            short_since: Some(12 * S),
            ..Recent::default()
        };
        assert_eq!(start_at(12 * S, counts, recent), (1, Some(13 * S)));
    }

    #[test]
    fn failures_back_off_and_then_try_one() {
        let counts = Counts {
            waiting: 2,
            ..Counts::default()
        };
        let failed = |failures: u32| Recent {
            failures,
            last_failure: Some(100 * S),
            ..Recent::default()
        };
        assert_eq!(start_at(100 * S, counts, failed(1)), (0, Some(101 * S)));
        assert_eq!(start_at(100 * S, counts, failed(3)), (0, Some(104 * S)));
        assert_eq!(start_at(100 * S, counts, failed(60)), (0, Some(130 * S)));
        assert_eq!(start_at(104 * S, counts, failed(3)), (1, None));
        let trying = Counts { creating: 1, ..counts };
        assert_eq!(start_at(104 * S, trying, failed(3)), (0, None));
    }

    #[test]
    fn the_old_go_and_the_idle_go_down_to_the_floor() {
        let at = |ages: &[u32]| -> Vec<Duration> { ages.iter().map(|age| (200 - age) * S).collect() };
        let now = 200 * S;
        assert_eq!(retire(&at(&[150, 99, 50, 20, 9]), &warm(), now), [0, 1]);
        assert_eq!(retire(&at(&[99, 50, 20]), &warm(), now), [0_usize; 0]);
        assert_eq!(retire(&at(&[9, 8, 7, 6, 5]), &warm(), now), [0_usize; 0]);
    }

    proptest! {
        #[test]
        fn the_ceiling_is_never_passed(
            creating in 0_u32..20, warm_now in 0_u32..20, leased in 0_u32..20, retiring in 0_u32..20,
            waiting in 0_u32..20, size in 0_u32..10, extra in 0_u32..10,
        ) {
            let warm = Warm { size, max: size + extra, ..warm() };
            let counts = Counts { creating, warm: warm_now, leased, retiring, waiting, kept: 0 };
            let start = start(counts, Recent::default(), &warm, &pace(), S);
            prop_assert!(start.count == 0 || counts.total() + start.count <= warm.max);
            prop_assert!(warm_now + creating + start.count <= (size + waiting).max(warm_now + creating));
        }
    }
}
