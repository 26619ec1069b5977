//! Options that several commands share.

use std::str::FromStr;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

/// How a job is to be treated by the queue.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct JobOptions {
    /// Priority, 9 first
    #[arg(short, long, value_name = "0-9", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub(crate) priority: Option<u8>,

    /// Queue to put the job into
    #[arg(short, long, value_name = "NAME")]
    pub(crate) queue: Option<String>,

    /// Label that the worker must have; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub(crate) labels: Vec<String>,

    /// Note kept with the job; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,

    /// Most attempts before the job counts as failed
    #[arg(long, value_name = "N")]
    pub(crate) max_attempts: Option<u32>,

    /// Wait so long before the job may start, such as 10m
    #[arg(long, value_name = "TIME")]
    pub(crate) delay: Option<String>,

    /// Run one job of this key at a time
    #[arg(long, value_name = "KEY")]
    pub(crate) concurrency: Option<String>,

    /// Run so many jobs of the concurrency key at a time
    #[arg(long, value_name = "N", requires = "concurrency")]
    pub(crate) concurrency_limit: Option<u32>,

    /// When so many run: wait, be refused, or cancel the one that runs
    #[arg(long, value_enum, requires = "concurrency")]
    pub(crate) strategy: Option<Strategy>,

    /// Start so many jobs of this key within a time, such as openai=60/1m
    #[arg(long, value_name = "KEY=N/TIME", value_parser = keyed_starts)]
    pub(crate) rate: Option<(String, Starts)>,
}

/// What a job does whose concurrency key has no free place.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Strategy {
    Queue,
    Reject,
    CancelRunning,
}

impl Strategy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reject => "reject",
            Self::CancelRunning => "cancel_running",
        }
    }
}

/// So many starts within a window of time, as in `10/1m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Starts {
    limit: u32,
    window: String,
}

impl FromStr for Starts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (limit, window) = text
            .split_once('/')
            .ok_or_else(|| format!("`{text}` is not N/TIME, such as 10/1m"))?;
        let limit = limit.parse().map_err(|_no_number| format!("`{limit}` is no number"))?;
        Ok(Self {
            limit,
            window: window.to_owned(),
        })
    }
}

impl From<Starts> for Value {
    fn from(starts: Starts) -> Self {
        json!({"limit": starts.limit, "window": starts.window})
    }
}

/// What can be set, or taken away with `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrNone<T>(Option<T>);

impl<T: FromStr<Err: ToString>> FromStr for OrNone<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => text
                .parse()
                .map(|value| Self(Some(value)))
                .map_err(|error: T::Err| error.to_string()),
        }
    }
}

impl<T: Into<Self>> From<OrNone<T>> for Value {
    fn from(setting: OrNone<T>) -> Self {
        setting.0.map_or(Self::Null, Into::into)
    }
}

/// The fields that were given.
pub(crate) fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Map<String, Value> {
    let given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    given.collect()
}

impl JobOptions {
    /// The fields of a submission that were given; the server knows the defaults of the others.
    pub(crate) fn to_fields(&self) -> Map<String, Value> {
        let metadata: Map<String, Value> = self
            .metadata
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let concurrency = self.concurrency.as_ref().map(|key| {
            let strategy = self.strategy.map(|strategy| strategy.as_str().into());
            let limit = self.concurrency_limit.map(Value::from);
            let key = Some(Value::from(key.as_str()));
            given([("key", key), ("limit", limit), ("strategy", strategy)]).into()
        });
        let rate = self
            .rate
            .as_ref()
            .map(|(key, Starts { limit, window })| json!({"key": key, "limit": limit, "window": window}));
        given([
            ("priority", self.priority.map(Value::from)),
            ("queue", self.queue.clone().map(Value::from)),
            ("labels", (!self.labels.is_empty()).then(|| json!(self.labels))),
            ("metadata", (!metadata.is_empty()).then_some(Value::Object(metadata))),
            ("max_attempts", self.max_attempts.map(Value::from)),
            ("delay", self.delay.clone().map(Value::from)),
            ("concurrency", concurrency),
            ("rate", rate),
        ])
    }
}

/// Reads KEY=N/TIME; a key may hold `=`.
fn keyed_starts(text: &str) -> Result<(String, Starts), String> {
    match text.rsplit_once('=') {
        Some((key, starts)) if !key.is_empty() => Ok((key.to_owned(), starts.parse()?)),
        _ => Err(format!("`{text}` is not KEY=N/TIME, such as openai=60/1m")),
    }
}

/// Reads NAME=VALUE.
///
/// # Errors
/// A sentence for the user when there is no `=` or no name.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_a_number_and_a_time() {
        let read = |text: &str| text.parse::<OrNone<Starts>>().map(Value::from);
        assert_eq!(read("10/1m"), Ok(json!({"limit": 10, "window": "1m"})));
        assert_eq!(read("none"), Ok(Value::Null));
        assert_eq!(read("10"), Err("`10` is not N/TIME, such as 10/1m".to_owned()));
        assert_eq!(read("x/1m"), Err("`x` is no number".to_owned()));
        assert_eq!(keyed_starts("a=b=1/2s").map(|(key, _)| key), Ok("a=b".to_owned()));
        assert!(keyed_starts("=1/2s").is_err());
    }

    #[test]
    fn only_what_was_given_is_submitted() {
        assert_eq!(JobOptions::default().to_fields(), Map::new());
        let options = JobOptions {
            concurrency: Some("k".to_owned()),
            strategy: Some(Strategy::CancelRunning),
            rate: Some(keyed_starts("r=5/1s").unwrap()),
            ..JobOptions::default()
        };
        let expected = json!({
            "concurrency": {"key": "k", "strategy": "cancel_running"},
            "rate": {"key": "r", "limit": 5, "window": "1s"},
        });
        assert_eq!(Value::Object(options.to_fields()), expected);
    }
}
