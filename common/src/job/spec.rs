//! What a submitter asks for.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::retry::Backoff;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing, through the whole queue: for checks and benchmarks.
    Noop,
    /// Runs a program in a sandbox.
    Exec,
    /// Runs an agent once, without a conversation.
    AgentRun,
    /// Answers one message of a conversation.
    ChatTurn,
    /// Submits jobs, waits for all of them and collects what came out.
    Group,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Noop, Self::Exec, Self::AgentRun, Self::ChatTurn, Self::Group];

    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Exec => "exec",
            Self::AgentRun => "agent_run",
            Self::ChatTurn => "chat_turn",
            Self::Group => "group",
        }
    }

    /// The kind that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotClass {
    /// Needs no sandbox at its start: noop, groups, and turns that only talk to a model.
    Light,
    /// Needs a sandbox at once.
    Sandbox,
}

impl SlotClass {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Light, Self::Sandbox];

    /// The name as it is written in keys and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Sandbox => "sandbox",
        }
    }
}

/// The class of a job: what its slot must be, then each required label after a plus sign, in order.
///
/// ```
/// use common::job::spec::{SlotClass, class_of};
/// assert_eq!(class_of(SlotClass::Sandbox, &["gpu".to_owned(), "eu".to_owned()]), "sandbox+eu+gpu");
/// ```
pub fn class_of(slot: SlotClass, labels: &[String]) -> String {
    let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    labels.sort_unstable();
    labels.dedup();
    std::iter::once(slot.as_str())
        .chain(labels)
        .collect::<Vec<_>>()
        .join("+")
}

/// How much earlier than its submission a job counts for each level of priority: level 9 goes before level 0 when it is
/// submitted up to 45 minutes later, and behind everything that is older than that, so no level starves.
pub const LEVEL_HEAD_START: Duration = Duration::from_mins(5);

/// What happens to a job whose concurrency key has no free place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// It waits for one.
    #[default]
    Queue,
    /// It fails.
    Reject,
    /// The one that runs is cancelled.
    CancelRunning,
}

impl Strategy {
    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reject => "reject",
            Self::CancelRunning => "cancel_running",
        }
    }

    /// The strategy that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Queue, Self::Reject, Self::CancelRunning]
            .into_iter()
            .find(|strategy| strategy.as_str() == text)
    }
}

/// A limit on how many jobs of one key run at once, within a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// The submitter's key.
    pub key: String,
    /// How many may run at once.
    #[serde(default = "one")]
    pub limit: u32,
    /// What happens when no place is free.
    #[serde(default)]
    pub strategy: Strategy,
}

fn one() -> u32 {
    1
}

/// A limit on how many jobs of one key start within a window of time, within a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The submitter's key.
    pub key: String,
    /// How many may start within any window.
    pub limit: u32,
    /// How long the window is.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
}

/// A validated submission, without its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What it does.
    pub kind: Kind,
    /// The named queue.
    pub queue: String,
    /// 0 to 9, 9 first.
    pub priority: u8,
    /// When it may run at the earliest.
    pub run_at: Option<DateTime<Utc>>,
    /// Labels that its worker must have.
    pub labels: Vec<String>,
    /// Longest duration of one attempt.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Failures after which it is not tried again.
    pub max_attempts: u32,
    /// How long it waits between failures.
    pub backoff: Backoff,
    /// What is tried again otherwise than usual: see [`RetryRule`](crate::job::RetryRule).
    pub retry_on: Vec<String>,
    /// Its concurrency key.
    pub concurrency: Option<Concurrency>,
    /// Its rate key.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
    /// The submitter's own notes.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

impl JobSpec {
    /// A submission with the defaults of API.md.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            queue: "default".to_owned(),
            priority: 5,
            run_at: None,
            labels: Vec::new(),
            timeout: Duration::from_mins(1),
            max_attempts: 3,
            backoff: Backoff::default(),
            retry_on: Vec::new(),
            concurrency: None,
            rate: None,
            user_id: None,
            metadata: serde_json::Map::new(),
        }
    }
}
