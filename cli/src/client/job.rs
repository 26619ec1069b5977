//! What the commands read of a job. The server may send more, now and later; nothing here minds.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JobState {
    Scheduled,
    Queued,
    Running,
    Waiting,
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
    /// A state that a newer server has.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        })
    }
}

/// Why a job failed.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct JobError {
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) message: String,
}

/// One job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) queue: String,
    pub(crate) priority: u8,
    pub(crate) state: JobState,
    pub(crate) created_at: DateTime<Utc>,
    #[serde(default)]
    pub(crate) started_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) finished_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) result: Value,
    #[serde(default)]
    pub(crate) error: Option<JobError>,
}

/// One attempt of a job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Attempt {
    #[serde(rename = "attempt")]
    pub(crate) number: u32,
    #[serde(default)]
    pub(crate) worker_id: Option<String>,
    #[serde(default)]
    pub(crate) started_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) finished_at: Option<DateTime<Utc>>,
    #[serde(default)]
    pub(crate) outcome: Option<String>,
    #[serde(default)]
    pub(crate) error: Option<JobError>,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub(crate) data: Vec<Value>,
    #[serde(default)]
    pub(crate) next_cursor: Option<String>,
}
