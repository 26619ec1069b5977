//! Logs: JSON lines or text, filtered by `telemetry.log`.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How a process logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// A filter as `tracing` reads it: `info`, or `info,sqlx=warn`.
    pub log: String,
    /// `text` for people, `json` for collectors.
    pub format: Format,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the process's log subscriber. A second call does nothing.
///
/// # Errors
/// When the filter cannot be read.
pub fn install(telemetry: &Telemetry) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(&telemetry.log)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = match telemetry.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber is installed already");
    }
    Ok(())
}
