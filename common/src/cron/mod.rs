//! Cron: an expression and a time zone, and the moments that they mean. Pure.
//!
//! It lives here and not in the scheduler because the API validates and previews with the same code that fires.
//!
//! # Expressions
//! - Five fields, as crontab(5) reads them: minute, hour, day of month, month, day of week. Weekdays 0 and 7 are Sunday;
//!   months and weekdays have three-letter names; `,` lists, `-` ranges, `/` steps of `*` or of a range. When day of month
//!   and day of week are both restricted (neither begins with `*`), either one suffices.
//! - Six fields: the same with seconds in front.
//! - `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`.
//! - `every 90s`, `every 1h30m`: whole seconds, counted from 1970-01-01T00:00:00Z, in no zone.
//! - `at 2026-12-01T09:00`: once. A time on the wall of the zone, or with an offset or `Z` a moment of its own.
//!
//! # Daylight saving
//! An expression whose second, minute or hour begins with `*` is an *interval*: it runs by the clock on the wall, so it
//! runs through a repeated hour twice and has nothing to catch up for a skipped one. Any other one names *times of day*:
//! a skipped time fires at the first valid moment after the gap, a repeated time fires once, at its first occurrence.
//!
//! The matcher is our own: crontab(5) fits into six bit sets, while the crates that parse Quartz's dialect number
//! weekdays otherwise and know no zones.

mod calendar;
mod error;
mod field;
mod local;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use chrono_tz::Tz;

use calendar::Calendar;
pub use error::{Error, Reason};

/// When something fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    expression: String,
    zone: Tz,
    rule: Rule,
}

/// What an expression says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Fields.
    Calendar(Calendar),
    /// Multiples of a duration since 1970.
    Every(Duration),
    /// One moment.
    At(DateTime<Utc>),
}

impl Cron {
    /// Reads an expression, and the IANA name of a zone such as `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    /// [`Error`]: the position of what is wrong and what was meant; also when the expression never fires.
    pub fn parse(expression: &str, zone: &str) -> Result<Self, Error> {
        let zone = parse::zone(zone);
        let rule = parse::rule(expression, zone.as_ref().copied().unwrap_or(Tz::UTC))?;
        let zone = zone?;
        Ok(Self {
            expression: expression.to_owned(),
            zone,
            rule,
        })
    }

    /// The expression as it was written.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The name of the zone.
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// A moment as the wall of the zone shows it, RFC 3339.
    pub fn local(&self, time: DateTime<Utc>) -> String {
        time.with_timezone(&self.zone)
            .to_rfc3339_opts(SecondsFormat::AutoSi, false)
    }

    /// The first moment after `time`; `None` when there is none in the next hundred years.
    pub fn next_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &self.rule {
            Rule::Calendar(calendar) => local::next_after(calendar, self.zone, time),
            Rule::Every(period) => {
                let period = i64::try_from(period.as_secs()).ok().filter(|seconds| *seconds > 0)?;
                let next = (time.timestamp().div_euclid(period) + 1).checked_mul(period)?;
                DateTime::from_timestamp(next, 0)
            }
            Rule::At(at) => Some(*at).filter(|at| *at > time),
        }
    }

    /// The first `count` moments after `time`.
    pub fn next_n(&self, time: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.next_after(time), |last| self.next_after(*last))
            .take(count)
            .collect()
    }

    /// The first moment at or after `time`.
    pub fn next_from(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.next_after(time - TimeDelta::microseconds(1))
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.expression, self.zone.name())
    }
}
