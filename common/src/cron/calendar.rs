//! The fields of an expression against the calendar, without any zone.

use chrono::{Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike};

use super::field::Set;

/// Leap days on one weekday are at most forty years apart, where a century lies between.
const YEARS_MAX: i32 = 100;

/// Six sets of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) second: Set,
    pub(super) minute: Set,
    pub(super) hour: Set,
    pub(super) day: Set,
    pub(super) month: Set,
    pub(super) weekday: Set,
}

impl Calendar {
    /// Whether it names times of day, and not an interval: see the module's rules for daylight saving.
    pub(super) fn names_times_of_day(&self) -> bool {
        !(self.second.star || self.minute.star || self.hour.star)
    }

    /// Whether any year has such a day.
    pub(super) fn ever_matches(&self) -> bool {
        // The Gregorian calendar repeats after 400 years; a rule of one weekday in February needs 40 of them.
        let start = NaiveDate::from_ymd_opt(2000, 1, 1);
        start.and_then(|start| self.next_day(start)).is_some()
    }

    /// The first match at or after `from`, to the second.
    pub(super) fn next_from(&self, from: NaiveDateTime) -> Option<NaiveDateTime> {
        let from = match from.nanosecond() {
            0 => from,
            _ => from.with_nanosecond(0)?.checked_add_signed(TimeDelta::seconds(1))?,
        };
        let day = self.next_day(from.date())?;
        let earliest = if day == from.date() {
            from.time()
        } else {
            NaiveTime::MIN
        };
        if let Some(time) = self.next_time(earliest) {
            return Some(day.and_time(time));
        }
        let day = self.next_day(day.succ_opt()?)?;
        Some(day.and_time(self.next_time(NaiveTime::MIN)?))
    }

    fn next_day(&self, from: NaiveDate) -> Option<NaiveDate> {
        let last_year = from.year().checked_add(YEARS_MAX)?;
        let mut day = from;
        while day.year() <= last_year {
            if !has(self.month, day.month()) {
                day = first_of_next_month(day)?;
            } else if self.matches_day(day) {
                return Some(day);
            } else {
                day = day.checked_add_days(Days::new(1))?;
            }
        }
        None
    }

    fn matches_day(&self, date: NaiveDate) -> bool {
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().num_days_from_sunday());
        if self.day.star || self.weekday.star {
            day && weekday
        } else {
            day || weekday
        }
    }

    fn next_time(&self, from: NaiveTime) -> Option<NaiveTime> {
        let (first_hour, first_minute) = (from.hour(), from.minute());
        let mut hour = next(self.hour, first_hour)?;
        if hour == first_hour {
            let mut minute = next(self.minute, first_minute);
            if minute == Some(first_minute) {
                if let Some(second) = next(self.second, from.second()) {
                    return NaiveTime::from_hms_opt(hour, first_minute, second);
                }
                minute = next(self.minute, first_minute + 1);
            }
            if let Some(minute) = minute {
                return NaiveTime::from_hms_opt(hour, minute, next(self.second, 0)?);
            }
            hour = next(self.hour, first_hour + 1)?;
        }
        NaiveTime::from_hms_opt(hour, next(self.minute, 0)?, next(self.second, 0)?)
    }
}

fn has(set: Set, value: u32) -> bool {
    set.bits >> value & 1 == 1
}

/// The smallest member that is not below `from`.
fn next(set: Set, from: u32) -> Option<u32> {
    let above = set.bits.checked_shr(from)?;
    (above != 0).then(|| from + above.trailing_zeros())
}

fn first_of_next_month(day: NaiveDate) -> Option<NaiveDate> {
    let (year, month) = if day.month() == 12 {
        (day.year() + 1, 1)
    } else {
        (day.year(), day.month() + 1)
    };
    NaiveDate::from_ymd_opt(year, month, 1)
}
