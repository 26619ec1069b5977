//! Times of jobs in answers: RFC 3339 in UTC, to the microsecond.
//!
//! Written in one piece: chrono's own way through the formatter, digit by digit, was a twentieth of what the server computes for a
//! submission (callgrind).

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

/// The first second after the year 9999.
const YEAR_10000: i64 = 253_402_300_800;

/// A time, or none.
pub(super) fn serialize<S: Serializer, T: Copy + Into<Option<DateTime<Utc>>>>(
    at: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match (*at).into() {
        None => serializer.serialize_none(),
        Some(at) if (0..YEAR_10000).contains(&at.timestamp()) => {
            serializer.collect_str(&humantime::format_rfc3339_micros(at.into()))
        }
        Some(at) => at.serialize(serializer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Shown(#[serde(serialize_with = "serialize")] Option<DateTime<Utc>>);

    fn shown(at: Option<DateTime<Utc>>) -> String {
        serde_json::to_string(&Shown(at)).unwrap()
    }

    #[test]
    fn a_time_is_shown_to_the_microsecond() {
        let at = |micros| DateTime::from_timestamp_micros(micros);
        assert_eq!(shown(at(1_795_444_653_960_693)), "\"2026-11-23T14:37:33.960693Z\"");
        assert_eq!(shown(at(0)), "\"1970-01-01T00:00:00.000000Z\"");
        assert_eq!(shown(None), "null");
    }

    #[test]
    fn a_time_that_no_clock_shows_is_shown_all_the_same() {
        let before = DateTime::from_timestamp(-1, 0);
        let after = DateTime::from_timestamp(YEAR_10000, 0);
        assert_eq!(shown(before), "\"1969-12-31T23:59:59Z\"");
        assert_eq!(shown(after), "\"+10000-01-01T00:00:00Z\"");
    }
}
