//! Deciding which due times of a schedule are fired now, which were missed, and which comes next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Misfire, Timing};

/// Most due times of one schedule that are fired together; the rest follow in the next round.
pub const FIRES_MAX: usize = 100;
/// How far missed due times are counted.
const COUNTED_MAX: usize = 1_000;

/// What to do with the due times that have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Due times that are too old.
    pub missed: Option<Missed>,
    /// Due times to fire, oldest first.
    pub fires: Vec<DateTime<Utc>>,
    /// The first due time that is not decided by this; in the past when there were too many.
    pub next: Option<DateTime<Utc>>,
}

/// A run of due times that are too old to fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The first.
    pub first: DateTime<Utc>,
    /// The last.
    pub last: DateTime<Utc>,
    /// How many, as far as they were counted.
    pub count: usize,
    /// Whether there were more than were counted.
    pub more: bool,
}

/// The first due time after `now`, within the schedule's own bounds.
pub fn first(timing: &Timing, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let next = match timing.starts_at {
        Some(starts_at) if starts_at > now => timing.cron.next_from(starts_at),
        _ => timing.cron.next_after(now),
    };
    within(timing, next)
}

/// Decides the due times from `next` up to `now`. `delay` is the schedule's share of its jitter. A due time is fired
/// when it became due within `grace`, which covers a failover, or within the schedule's own catch-up window as its
/// misfire policy says.
pub fn plan(timing: &Timing, delay: TimeDelta, next: DateTime<Utc>, now: DateTime<Utc>, grace: Duration) -> Plan {
    let due = now.checked_sub_signed(delay).unwrap_or(now);
    let before = |window: Duration| {
        let window = TimeDelta::from_std(window).unwrap_or(TimeDelta::MAX);
        due.checked_sub_signed(window).unwrap_or(DateTime::<Utc>::MIN_UTC)
    };
    let oldest = match timing.misfire {
        Misfire::None => before(grace),
        Misfire::All => before(timing.catch_up.max(grace)),
        Misfire::Last => last_before(timing, next, before(grace), due)
            .unwrap_or_else(|| before(grace))
            .max(before(timing.catch_up.max(grace))),
    };
    let mut plan = Plan {
        next: within(timing, Some(next)),
        ..Plan::default()
    };
    if plan.next.is_some_and(|first| first < oldest) {
        plan.missed = Some(missed(timing, next, oldest));
        plan.next = within(timing, timing.cron.next_from(oldest));
    }
    while let Some(fire_at) = plan.next.filter(|fire_at| *fire_at <= due)
        && plan.fires.len() < FIRES_MAX
    {
        plan.fires.push(fire_at);
        plan.next = within(timing, timing.cron.next_after(fire_at));
    }
    plan
}

/// The last due time from `next` on that is too late to be on time; none when another is due on time, which stands for it.
fn last_before(
    timing: &Timing,
    next: DateTime<Utc>,
    on_time: DateTime<Utc>,
    due: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let is_due = |at: DateTime<Utc>| at <= due;
    if within(timing, timing.cron.next_from(on_time.max(next))).is_some_and(is_due) {
        return None;
    }
    let end = on_time - TimeDelta::microseconds(1);
    let end = timing.ends_at.map_or(end, |ends_at| end.min(ends_at));
    // Steps back that double find it soon, whether it comes every second or once a year.
    let mut step = TimeDelta::minutes(1);
    loop {
        let from = end.checked_sub_signed(step).unwrap_or(next).max(next);
        let following = |at: &DateTime<Utc>| timing.cron.next_after(*at).filter(|at| *at <= end);
        let first = timing.cron.next_from(from).filter(|at| *at <= end);
        if let Some(last) = std::iter::successors(first, following).last() {
            return Some(last);
        }
        if from == next {
            return None;
        }
        step = step.checked_mul(2).unwrap_or(TimeDelta::MAX);
    }
}

fn missed(timing: &Timing, first: DateTime<Utc>, oldest: DateTime<Utc>) -> Missed {
    let following = |last: &DateTime<Utc>| within(timing, timing.cron.next_after(*last)).filter(|next| *next < oldest);
    let mut counted = std::iter::successors(Some(first), following);
    let (mut count, mut last) = (0, first);
    for fire_at in counted.by_ref().take(COUNTED_MAX) {
        (count, last) = (count + 1, fire_at);
    }
    Missed {
        first,
        last,
        count,
        more: counted.next().is_some(),
    }
}

fn within(timing: &Timing, at: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    at.filter(|at| timing.ends_at.is_none_or(|ends_at| *at <= ends_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cron::Cron;

    const GRACE: Duration = Duration::from_secs(15);

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-21T{text}Z").parse().unwrap()
    }

    fn timing(cron: &str) -> Timing {
        Timing::new(Cron::parse(cron, "UTC").unwrap())
    }

    fn planned(timing: &Timing, next: &str, now: &str) -> Plan {
        plan(timing, TimeDelta::zero(), at(next), at(now), GRACE)
    }

    #[test]
    fn a_due_time_is_fired_when_it_has_come() {
        let timing = timing("0 * * * *");
        assert_eq!(
            planned(&timing, "12:00:00", "11:59:59.999"),
            Plan {
                next: Some(at("12:00:00")),
                ..Plan::default()
            }
        );
        let fired = Plan {
            fires: vec![at("12:00:00")],
            next: Some(at("13:00:00")),
            missed: None,
        };
        assert_eq!(planned(&timing, "12:00:00", "12:00:00"), fired);
    }

    #[test]
    fn a_failover_loses_no_due_time() {
        let plan = planned(&timing("* * * * * *"), "12:00:00", "12:00:05.5");
        assert_eq!(
            (plan.fires.len(), plan.missed, plan.next),
            (6, None, Some(at("12:00:06")))
        );
    }

    #[test]
    fn what_is_older_than_the_window_is_missed_and_counted() {
        let hourly = planned(&timing("0 * * * *"), "03:00:00", "12:30:00");
        let missed = Missed {
            first: at("03:00:00"),
            last: at("12:00:00"),
            count: 10,
            more: false,
        };
        assert_eq!(
            hourly,
            Plan {
                missed: Some(missed),
                fires: vec![],
                next: Some(at("13:00:00"))
            }
        );
        let secondly = planned(&timing("* * * * * *"), "03:00:00", "12:30:00");
        assert_eq!(
            secondly.missed.as_ref().map(|missed| (missed.count, missed.more)),
            Some((COUNTED_MAX, true))
        );
        assert_eq!(secondly.fires.first(), Some(&at("12:29:45")));
    }

    #[test]
    fn a_catch_up_window_fires_what_lies_in_it_in_rounds() {
        let timing = Timing {
            catch_up: Duration::from_hours(4),
            ..timing("* * * * *")
        };
        let first = planned(&timing, "03:00:00", "12:00:00");
        assert_eq!(
            (first.fires.len(), first.fires[0], first.next),
            (FIRES_MAX, at("08:00:00"), Some(at("09:40:00")))
        );
        let second = planned(&timing, "09:40:00", "12:00:00");
        assert_eq!((second.fires.len(), second.missed), (FIRES_MAX, None));
    }

    #[rstest::rstest]
    #[case::none(Misfire::None, "12:30:00", &[], Some(10))]
    #[case::last(Misfire::Last, "12:30:00", &["12:00:00"], Some(9))]
    #[case::one_on_time_stands_for_the_last(Misfire::Last, "13:00:01", &["13:00:00"], Some(10))]
    #[case::all(Misfire::All, "12:30:00", &["11:00:00", "12:00:00"], Some(8))]
    fn a_downtime_is_made_up_for_as_the_policy_says(
        #[case] misfire: Misfire,
        #[case] now: &str,
        #[case] fires: &[&str],
        #[case] missed: Option<usize>,
    ) {
        let timing = Timing {
            catch_up: Duration::from_mins(100),
            misfire,
            ..timing("0 * * * *")
        };
        let plan = planned(&timing, "03:00:00", now);
        assert_eq!(plan.fires, fires.iter().map(|fire| at(fire)).collect::<Vec<_>>());
        assert_eq!(plan.missed.map(|missed| missed.count), missed);
    }

    #[test]
    fn the_last_of_a_downtime_is_found_however_often_it_comes() {
        let last = |cron: &str| {
            let timing = Timing {
                catch_up: Duration::from_hours(24 * 400),
                misfire: Misfire::Last,
                ..timing(cron)
            };
            plan(
                &timing,
                TimeDelta::zero(),
                "2026-01-01T00:00:00Z".parse().unwrap(),
                at("12:00:30"),
                GRACE,
            )
            .fires
        };
        assert_eq!(
            last("0 0 1 1 *"),
            ["2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap()]
        );
        assert_eq!(last("* 3 * * *"), [at("03:59:00")]);
        assert_eq!(last("* * * * * *").len(), 16);
    }

    #[test]
    fn nothing_is_due_before_the_start_or_after_the_end() {
        let timing = Timing {
            starts_at: Some(at("12:00:00")),
            ends_at: Some(at("13:00:00")),
            ..timing("0 * * * *")
        };
        assert_eq!(first(&timing, at("03:00:00")), Some(at("12:00:00")));
        let last = planned(&timing, "13:00:00", "13:00:01");
        assert_eq!((last.fires, last.next), (vec![at("13:00:00")], None));
        assert_eq!(first(&timing, at("13:00:00")), None);
    }

    #[test]
    fn jitter_puts_a_fire_off_and_not_its_due_time() {
        let timing = timing("0 * * * *");
        let delay = TimeDelta::seconds(90);
        assert_eq!(
            plan(&timing, delay, at("12:00:00"), at("12:01:29"), GRACE).fires,
            Vec::<DateTime<Utc>>::new()
        );
        assert_eq!(
            plan(&timing, delay, at("12:00:00"), at("12:01:30"), GRACE).fires,
            vec![at("12:00:00")]
        );
    }
}
