//! US dollars, exact: what a token costs is a whole number of millionths of a millionth of a dollar.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Digits after the point that are kept.
const DIGITS: usize = 12;
/// Parts of a dollar.
const PARTS: u128 = 1_000_000_000_000;

/// An amount of US dollars, never negative. On the wire it is a decimal text, such as `"0.0125"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(u128);

/// A text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no amount of dollars with at most twelve digits after the point")]
pub struct NoAmount(String);

impl Usd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many times this amount per million.
    pub fn per_million(self, count: u64) -> Self {
        // Rounded up, so that what is reserved is never less than what is charged.
        Self(self.0.saturating_mul(u128::from(count)).div_ceil(1_000_000))
    }

    /// How many units at `self` per million this amount pays for.
    pub fn pays_for(amount: Self, price: Self) -> u64 {
        match price.0 {
            0 => u64::MAX,
            price => u64::try_from(amount.0.saturating_mul(1_000_000) / price).unwrap_or(u64::MAX),
        }
    }

    /// The rest, or nothing when there is none.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl FromStr for Usd {
    type Err = NoAmount;

    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let wrong = || NoAmount(text.to_owned());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let kept = if fraction.len() > DIGITS {
            fraction.trim_end_matches('0')
        } else {
            fraction
        };
        let padded = format!("{kept:0<DIGITS$}");
        if !is_number(whole) || !is_number(fraction) || padded.len() > DIGITS || whole.len() > 15 {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_digits| wrong())?;
        let parts: u128 = padded.parse().map_err(|_digits| wrong())?;
        Ok(Self(whole * PARTS + parts))
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, parts) = (self.0 / PARTS, self.0 % PARTS);
        let parts = format!("{parts:0DIGITS$}");
        match parts.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            parts => write!(f, "{whole}.{parts}"),
        }
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Usd {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Add::add)
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    #[rstest]
    #[case("0", "0")]
    #[case("3.00", "3")]
    #[case("0.075", "0.075")]
    #[case("12.000000000001", "12.000000000001")]
    #[case("0.00000000000100000", "0.000000000001")]
    #[case("0.0000000000000000", "0")]
    fn an_amount_is_written_without_needless_digits(#[case] text: &str, #[case] written: &str) {
        assert_eq!(usd(text).to_string(), written);
    }

    #[rstest]
    #[case("")]
    #[case(".5")]
    #[case("1.")]
    #[case("-1")]
    #[case("1e3")]
    #[case("0.0000000000001")]
    #[case("1234567890123456")]
    fn what_is_no_amount_is_refused(#[case] text: &str) {
        assert!(text.parse::<Usd>().is_err());
    }

    #[test]
    fn tokens_cost_their_price_exactly() {
        assert_eq!(usd("0.075").per_million(3).to_string(), "0.000000225");
        assert_eq!(usd("15").per_million(1_000_000), usd("15"));
        assert_eq!(Usd::pays_for(usd("0.5"), usd("10")), 50_000);
        assert_eq!(Usd::pays_for(usd("0.5"), Usd::ZERO), u64::MAX);
    }

    proptest! {
        #[test]
        fn an_amount_reads_as_it_is_written(parts in 0..10_u128.pow(24)) {
            let amount = Usd(parts);
            prop_assert_eq!(usd(&amount.to_string()), amount);
        }

        #[test]
        fn what_is_paid_for_never_costs_more(amount in 0..10_u128.pow(18), price in 1..10_u128.pow(15)) {
            let (amount, price) = (Usd(amount), Usd(price));
            prop_assert!(price.per_million(Usd::pays_for(amount, price)) <= amount);
        }
    }
}
