//! A field of a change: left out, `null`, or a value.

use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Deserializer};

use crate::problem::FieldError;

/// What a field says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Given<T> {
    /// Nothing: what is, stays.
    #[default]
    Absent,
    /// `null`: the default.
    Null,
    /// This.
    Value(T),
}

impl<T> Given<T> {
    /// The value, if there is one.
    pub(super) fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// What holds after the change: the value, the default, or what was.
    pub(super) fn over(&self, old: Option<T>, default: impl FnOnce() -> T) -> T
    where
        T: Clone,
    {
        match self {
            Self::Value(value) => value.clone(),
            Self::Null => default(),
            Self::Absent => old.unwrap_or_else(default),
        }
    }
}

/// A field that is left out is never read: its struct has a default.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.map_or(Self::Null, Self::Value))
    }
}

/// A duration as it will be stored, in whole milliseconds.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn length(
    pointer: &str,
    given: &Given<String>,
    old: Option<Duration>,
    max: Duration,
) -> Result<Duration, FieldError> {
    let Some(text) = given.value() else {
        return Ok(old.filter(|_| *given == Given::Absent).unwrap_or_default());
    };
    let read = humantime::parse_duration(text);
    let read = read.map_err(|_garbage| FieldError::body(pointer, "is not a duration, such as \"90s\""))?;
    if read > max {
        let max = humantime::format_duration(max);
        return Err(FieldError::body(pointer, format!("is over {max}")));
    }
    // Milliseconds are what is stored.
    Ok(Duration::from_millis(
        u64::try_from(read.as_millis()).unwrap_or(u64::MAX),
    ))
}

/// A moment as it will be stored, in whole microseconds.
///
/// # Errors
/// When it is centuries away.
pub(super) fn moment(
    pointer: &str,
    given: &Given<DateTime<Utc>>,
    old: Option<DateTime<Utc>>,
) -> Result<Option<DateTime<Utc>>, FieldError> {
    match given {
        Given::Absent => Ok(old),
        Given::Null => Ok(None),
        Given::Value(at) if !(1970..=2200).contains(&at.year()) => {
            Err(FieldError::body(pointer, "is between 1970 and 2200"))
        }
        Given::Value(at) => Ok(DateTime::from_timestamp_micros(at.timestamp_micros())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::absent("{}", 3)]
    #[case::null(r#"{"field":null}"#, 0)]
    #[case::value(r#"{"field":7}"#, 7)]
    fn null_is_the_default_and_silence_is_no_change(#[case] json: &str, #[case] expected: u8) {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            field: Given<u8>,
        }
        let body: Body = serde_json::from_str(json).unwrap();
        assert_eq!(body.field.over(Some(3), || 0), expected);
    }
}
