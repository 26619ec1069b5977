//! Limits that operators set, and keys that are paused.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::ids::{AgentId, TenantId};

/// What a limit is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// All jobs of a tenant.
    Tenant(TenantId),
    /// All jobs of a queue, whosever they are.
    Queue(String),
    /// All jobs of a tenant's agent.
    Agent(TenantId, AgentId),
    /// All jobs of a tenant's key, of concurrency or of rate.
    Key(TenantId, String),
}

/// What may run, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Jobs that may run at once; none is no limit.
    pub max_running: Option<u32>,
    /// Jobs that may start within any window of this length; none is no limit.
    pub rate: Option<(u32, Duration)>,
    /// How long nothing starts.
    pub pause: Option<Pause>,
}

/// How long nothing starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// Until this time.
    Until(DateTime<Utc>),
    /// Until somebody ends it.
    Open,
}
