//! What Redis counts of itself: for measurements, not for decisions.

use super::{Error, Queue};

/// Counters of the server at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Commands since it started, those inside of scripts included.
    pub commands: u64,
    /// Bytes that its data takes.
    pub memory_bytes: u64,
}

impl Queue {
    /// Reads the counters.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn statistics(&self) -> Result<Statistics, Error> {
        let text: String = redis::cmd("INFO")
            .arg("everything")
            .query_async(&mut self.connection().await?)
            .await?;
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0)
        };
        Ok(Statistics {
            commands: value("total_commands_processed"),
            memory_bytes: value("used_memory"),
        })
    }
}
