//! Prices: what tokens cost, by model and by date, from a table in a file.
//!
//! A row holds from its day until a later row of a model as exactly named. What no row names has no price: its cost is
//! unknown, which is said, and never guessed.

use std::path::Path;

use chrono::NaiveDate;
use common::message::Usage;
use common::money::Usd;
use serde::{Deserialize, Serialize};

use super::{Error, ModelName};

/// The table that is built in.
const BUILT_IN: &str = include_str!("prices.toml");

/// One row: US dollars per million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// `provider/model`; a `*` at its end stands for any rest.
    pub model: String,
    /// The first day on which it holds, UTC.
    pub from: NaiveDate,
    /// Tokens of requests that no cache is concerned with.
    pub input: Usd,
    /// Tokens that are read from a cache; as `input` when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<Usd>,
    /// Tokens that are written to a cache of minutes; as `input` when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_short: Option<Usd>,
    /// Tokens that are written to a cache of an hour; as `cache_write_short` when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_long: Option<Usd>,
    /// Tokens of answers, reasoning included.
    pub output: Usd,
    /// What holds instead, for all tokens of a call, when its request is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<Long>,
}

/// The price of calls whose requests are long: US dollars per million tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are those of a price")]
pub struct Long {
    /// Tokens of a request, those of caches included, above which it is long.
    pub over: u64,
    /// As in [`Price`].
    pub input: Usd,
    /// As in [`Price`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read: Option<Usd>,
    /// As in [`Price`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_short: Option<Usd>,
    /// As in [`Price`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_long: Option<Usd>,
    /// As in [`Price`].
    pub output: Usd,
}

/// What one million tokens of each kind cost.
#[derive(Clone, Copy, Debug)]
struct Rates {
    input: Usd,
    cache_read: Usd,
    cache_write_short: Usd,
    cache_write_long: Usd,
    output: Usd,
}

impl Rates {
    fn new(input: Usd, [read, short, long]: [Option<Usd>; 3], output: Usd) -> Self {
        let cache_write_short = short.unwrap_or(input);
        Self {
            input,
            cache_read: read.unwrap_or(input),
            cache_write_short,
            cache_write_long: long.unwrap_or(cache_write_short),
            output,
        }
    }

    fn input_max(&self) -> Usd {
        let of_caches = self.cache_read.max(self.cache_write_short).max(self.cache_write_long);
        self.input.max(of_caches)
    }
}

/// The most that a call can cost, per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of its request, whatever caches do with it.
    pub input: Usd,
    /// Of its answer.
    pub output: Usd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    price: Vec<Price>,
}

/// All prices: an operator's own before those that are built in.
#[derive(Clone, Debug)]
pub struct Prices {
    own: Vec<Price>,
    built_in: Vec<Price>,
}

impl Prices {
    /// The built-in table, and before it that of a file.
    ///
    /// # Errors
    /// [`Error::Settings`] that says what is wrong with the file.
    pub fn open(file: Option<&Path>) -> Result<Self, Error> {
        let fault = |reason: String| Error::Settings {
            provider: "prices".to_owned(),
            reason,
        };
        let built_in = read(BUILT_IN).map_err(fault)?;
        let own = match file {
            None => Vec::new(),
            Some(path) => {
                let named = |error: String| fault(format!("{}: {error}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
                read(&text).map_err(named)?
            }
        };
        Ok(Self { own, built_in })
    }

    /// The price of a model on a day; none when no row names it.
    pub fn of(&self, model: &ModelName, day: NaiveDate) -> Option<&Price> {
        let name = model.to_string();
        best(&self.own, &name, day).or_else(|| best(&self.built_in, &name, day))
    }
}

fn read(text: &str) -> Result<Vec<Price>, String> {
    let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    Ok(table.price)
}

/// The row that names the model most exactly, and of several such the latest that holds.
fn best<'a>(rows: &'a [Price], name: &str, day: NaiveDate) -> Option<&'a Price> {
    rows.iter()
        .filter(|row| row.from <= day)
        .filter_map(|row| Some((exactness(&row.model, name)?, row.from, row)))
        .max_by_key(|(exactness, from, _)| (*exactness, *from))
        .map(|(_, _, row)| row)
}

fn exactness(pattern: &str, name: &str) -> Option<usize> {
    match pattern.strip_suffix('*') {
        Some(head) => name.starts_with(head).then_some(head.len()),
        None => (pattern == name).then_some(usize::MAX),
    }
}

impl Price {
    /// What a call costs.
    pub fn cost(&self, usage: &Usage) -> Usd {
        let rates = self.rates(usage.input_tokens);
        let read = usage.cached_input_tokens;
        let (short, long) = (usage.cache_write_short_tokens, usage.cache_write_long_tokens);
        let fresh = usage
            .input_tokens
            .saturating_sub(read)
            .saturating_sub(short)
            .saturating_sub(long);
        [
            rates.input.per_million(fresh),
            rates.cache_read.per_million(read),
            rates.cache_write_short.per_million(short),
            rates.cache_write_long.per_million(long),
            rates.output.per_million(usage.output_tokens),
        ]
        .into_iter()
        .sum()
    }

    /// The most that a call can cost whose request has at most so many tokens.
    pub fn bound(&self, input_tokens_max: u64) -> Bound {
        let (least, most) = (self.rates(0), self.rates(input_tokens_max));
        Bound {
            input: least.input_max().max(most.input_max()),
            output: least.output.max(most.output),
        }
    }

    fn rates(&self, input_tokens: u64) -> Rates {
        match &self.long {
            Some(long) if input_tokens > long.over => {
                let caches = [long.cache_read, long.cache_write_short, long.cache_write_long];
                Rates::new(long.input, caches, long.output)
            }
            _ => {
                let caches = [self.cache_read, self.cache_write_short, self.cache_write_long];
                Rates::new(self.input, caches, self.output)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    fn row(model: &str, from: &str, input: &str) -> Price {
        Price {
            model: model.to_owned(),
            from: from.parse().unwrap(),
            input: usd(input),
            cache_read: None,
            cache_write_short: None,
            cache_write_long: None,
            output: usd("10"),
            long: None,
        }
    }

    fn found<'a>(prices: &'a Prices, model: &str, day: &str) -> Option<&'a Price> {
        prices.of(&model.parse().unwrap(), day.parse().unwrap())
    }

    #[test]
    fn the_built_in_table_can_be_read_and_plays_are_free() {
        let prices = Prices::open(None).unwrap();
        assert_eq!(found(&prices, "scripted/demo", "2026-11-21").unwrap().output, Usd::ZERO);
        assert!(found(&prices, "anthropic/claude-sonnet-4-5-20250929", "2026-11-21").is_some());
        assert_eq!(found(&prices, "nobody/knows", "2026-11-21"), None);
        for price in &prices.built_in {
            assert!(price.model.parse::<ModelName>().is_ok(), "{}", price.model);
        }
    }

    #[test]
    fn the_most_exact_name_wins_then_the_latest_day_and_ones_own_before_all() {
        let prices = Prices {
            own: vec![row("openai/gpt-x", "2026-06-01", "9")],
            built_in: vec![
                row("openai/gpt-*", "2026-01-01", "1"),
                row("openai/gpt-x", "2026-01-01", "2"),
                row("openai/gpt-x", "2026-03-01", "3"),
                row("openai/gpt-x*", "2026-05-01", "4"),
            ],
        };
        let input = |model: &str, day: &str| found(&prices, model, day).map(|row| row.input.to_string());
        assert_eq!(input("openai/gpt-y", "2026-02-01").as_deref(), Some("1"));
        assert_eq!(input("openai/gpt-x", "2026-02-01").as_deref(), Some("2"));
        assert_eq!(input("openai/gpt-x", "2026-05-02").as_deref(), Some("3"));
        assert_eq!(input("openai/gpt-x-mini", "2026-05-02").as_deref(), Some("4"));
        assert_eq!(input("openai/gpt-x", "2026-06-02").as_deref(), Some("9"));
        assert_eq!(input("openai/gpt-x", "2025-12-31"), None);
    }

    #[test]
    fn classes_of_the_cache_have_prices_of_their_own() {
        let price = Price {
            cache_read: Some(usd("0.3")),
            cache_write_short: Some(usd("3.75")),
            cache_write_long: Some(usd("6")),
            ..row("a/b", "2026-01-01", "3")
        };
        let usage = Usage {
            input_tokens: 1_000_000,
            cached_input_tokens: 500_000,
            cache_write_short_tokens: 100_000,
            cache_write_long_tokens: 100_000,
            output_tokens: 10_000,
            ..Usage::default()
        };
        // 300,000 fresh, and each class by its price.
        assert_eq!(price.cost(&usage), usd("2.125"));
        assert_eq!(price.bound(1).input, usd("6"));
        let plain = row("a/b", "2026-01-01", "3");
        assert_eq!(
            plain.cost(&usage),
            usd("3.1"),
            "without prices of their own all are input"
        );
    }

    #[test]
    fn a_long_request_has_a_price_of_its_own_for_all_its_tokens() {
        let prices = Prices::open(None).unwrap();
        let price = found(&prices, "anthropic/claude-haiku-5-5", "2026-11-21").unwrap();
        let cost = |input_tokens| {
            price.cost(&Usage {
                input_tokens,
                cached_input_tokens: 50_000,
                output_tokens: 1_000,
                ..Usage::default()
            })
        };
        assert_eq!(cost(100_000), usd("0.006"), "50,000 fresh, 50,000 read, 1,000 written");
        assert_eq!(cost(150_000), usd("0.055"));
        assert_eq!(price.bound(100_000).output, usd("0.5"));
        let long = Bound {
            input: usd("1"),
            output: usd("2.5"),
        };
        assert_eq!(price.bound(100_001), long);
    }

    #[test]
    fn a_later_day_has_its_price_and_a_later_model_none() {
        let prices = Prices::open(None).unwrap();
        let read = |day: &str| found(&prices, "anthropic/claude-sonnet-5-5", day).and_then(|row| row.cache_read);
        assert_eq!(
            (read("2026-10-06"), read("2026-10-07")),
            (Some(usd("0.2")), Some(usd("0.1")))
        );
        let opus = |model: &str| found(&prices, model, "2026-11-21").map(|row| row.input);
        assert_eq!(opus("anthropic/claude-opus-5"), Some(usd("5")));
        assert_eq!(opus("anthropic/claude-opus-5-5"), Some(usd("4")));
        assert_eq!(opus("anthropic/claude-opus-5-9"), None);
        assert_eq!(opus("openai/gpt-5.9"), None);
    }

    #[test]
    fn a_file_that_is_wrong_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "[[price]]\nmodel = \"a/b\"\nfrom = \"2026-01-01\"\ninput = \"free\"\noutput = \"1\"",
        )
        .unwrap();
        let error = Prices::open(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("free"), "{error}");
    }
}
