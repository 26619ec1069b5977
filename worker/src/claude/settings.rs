//! Settings of the command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `[claude_code]`: how long the command line may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How long it may say nothing: a call of a model has begun to answer by then, or failed.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// And while a tool runs: the longest that it gives one, and a little.
    #[serde(with = "humantime_serde")]
    pub tool_silence: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            silence: Duration::from_mins(4),
            tool_silence: Duration::from_mins(11),
        }
    }
}

impl Settings {
    /// What is wrong with them, as a sentence.
    pub fn fault(&self) -> Option<&'static str> {
        if self.silence.is_zero() || self.tool_silence < self.silence {
            return Some("claude_code.silence must be more than 0 and not longer than claude_code.tool_silence");
        }
        None
    }
}
