//! Times on the wall to moments: where a zone skips an hour or has it twice.

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

use super::calendar::Calendar;

/// No zone ever moved its clocks by more than a day.
const SHIFT_MAX: TimeDelta = TimeDelta::hours(26);

pub(super) fn next_after(calendar: &Calendar, zone: Tz, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let local = zone.from_utc_datetime(&time.naive_utc()).naive_local();
    let following = local.checked_add_signed(TimeDelta::seconds(1))?.with_nanosecond(0)?;
    let ahead = first_after(calendar, zone, following, time);
    if calendar.names_times_of_day() {
        return ahead;
    }
    // In the first of two passes through a repeated hour the second one lies ahead, with earlier times on the wall.
    match second_pass(zone, local, time) {
        None => ahead,
        Some(start) => {
            let wall = zone.from_utc_datetime(&start.naive_utc()).naive_local();
            let again = first_after(calendar, zone, wall, start - TimeDelta::microseconds(1));
            [ahead, again].into_iter().flatten().min()
        }
    }
}

/// The first moment after `time` whose wall time is a match that is not before `wall`.
fn first_after(calendar: &Calendar, zone: Tz, wall: NaiveDateTime, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let times_of_day = calendar.names_times_of_day();
    let mut from = wall;
    loop {
        let matched = calendar.next_from(from)?;
        let later = |moment: &DateTime<Utc>| *moment > time;
        let found = match zone.from_local_datetime(&matched) {
            MappedLocalTime::Single(at) => Some(at.to_utc()).filter(later),
            MappedLocalTime::Ambiguous(first, _) if times_of_day => Some(first.to_utc()).filter(later),
            MappedLocalTime::Ambiguous(first, second) => {
                [first.to_utc(), second.to_utc()].into_iter().filter(later).min()
            }
            MappedLocalTime::None => {
                let end = gap_end(zone, matched);
                if times_of_day && later(&end) {
                    return Some(end);
                }
                from = zone.from_utc_datetime(&end.naive_utc()).naive_local();
                continue;
            }
        };
        if found.is_some() {
            return found;
        }
        from = matched.checked_add_signed(TimeDelta::seconds(1))?;
    }
}

/// The moment that a time on the wall names: the first valid one when it is skipped, the first of two.
pub(super) fn moment(zone: Tz, wall: NaiveDateTime) -> DateTime<Utc> {
    match zone.from_local_datetime(&wall) {
        MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => at.to_utc(),
        MappedLocalTime::None => gap_end(zone, wall),
    }
}

/// Where the second pass begins, when `time` lies in the first pass through a repeated hour.
fn second_pass(zone: Tz, local: NaiveDateTime, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Ambiguous(first, second) if first.to_utc() == time => {
            let before = first.offset().fix();
            let changed = |at: DateTime<Utc>| zone.offset_from_utc_datetime(&at.naive_utc()).fix() != before;
            Some(first_that(time, second.to_utc(), changed))
        }
        _ => None,
    }
}

/// The first moment whose wall time is after `skipped`, which no moment has.
fn gap_end(zone: Tz, skipped: NaiveDateTime) -> DateTime<Utc> {
    let passed = |at: DateTime<Utc>| zone.from_utc_datetime(&at.naive_utc()).naive_local() > skipped;
    first_that(skipped.and_utc() - SHIFT_MAX, skipped.and_utc() + SHIFT_MAX, passed)
}

/// The first whole second in (`low`, `high`] for which `holds`, which is false before it and true from it on.
fn first_that(low: DateTime<Utc>, high: DateTime<Utc>, holds: impl Fn(DateTime<Utc>) -> bool) -> DateTime<Utc> {
    let (mut low, mut high) = (low.timestamp(), high.timestamp());
    let at = |second: i64| DateTime::from_timestamp(second, 0).unwrap_or_default();
    while low + 1 < high {
        let middle = low.midpoint(high);
        if holds(at(middle)) { high = middle } else { low = middle }
    }
    at(high)
}
