//! Options that several commands share.

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
}

impl JobOptions {
    /// The fields of a submission that were given; the server knows the defaults of the others.
    pub(crate) fn to_fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let metadata: Map<String, Value> = self
            .metadata
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let given = [
            ("priority", self.priority.map(Value::from)),
            ("queue", self.queue.clone().map(Value::from)),
            ("labels", (!self.labels.is_empty()).then(|| json!(self.labels))),
            ("metadata", (!metadata.is_empty()).then_some(Value::Object(metadata))),
            ("max_attempts", self.max_attempts.map(Value::from)),
            ("delay", self.delay.clone().map(Value::from)),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                fields.insert(name.to_owned(), value);
            }
        }
        fields
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
