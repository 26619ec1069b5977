//! A field of a change: left out, `null`, or a value.

use serde::{Deserialize, Deserializer};

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
