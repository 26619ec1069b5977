//! The input of a noop job.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a noop does: nothing, for a while. Other fields are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoopInput {
    /// How long it holds its slot.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
}
