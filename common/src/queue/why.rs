//! Why a job is not running: what the index says.

use chrono::{DateTime, Utc};

use super::gate::FOREVER_MS;
use super::{Error, Queue};
use crate::ids::{AgentId, ConversationId, JobId, TenantId};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Its place.
    pub place: Place,
    /// Whether it is claimed by a worker that holds nothing else.
    pub is_alone: bool,
}

/// What keeps a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A worker holds it, or had it just now.
    Leased,
    /// A free slot, after so many others of its tenant.
    Backlog {
        /// Jobs of its tenant before it.
        ahead: u64,
    },
    /// A gate that is shut.
    Shut {
        /// What the gate is of.
        by: Shut,
        /// When it may open by itself; none when a place must be given back first, or somebody must resume it.
        until: Option<DateTime<Utc>>,
        /// Whether it is paused, until then or until somebody resumes it.
        is_paused: bool,
        /// Jobs before it.
        ahead: u64,
    },
}

/// What a gate is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// Its tenant.
    Tenant,
    /// Its queue.
    Queue,
    /// Its agent.
    Agent(AgentId),
    /// Its concurrency key.
    Concurrency,
    /// Its rate key.
    Rate,
    /// Its conversation.
    Conversation(ConversationId),
}

impl Shut {
    fn of(gate: &str) -> Option<Self> {
        let (kind, of) = gate.split_once(':')?;
        Some(match kind {
            "t" => Self::Tenant,
            "q" => Self::Queue,
            "a" => Self::Agent(of.parse().ok()?),
            "c" => Self::Concurrency,
            "x" => Self::Rate,
            "v" => Self::Conversation(of.parse().ok()?),
            _ => return None,
        })
    }
}

impl Queue {
    /// Where a job stands; `None` when Redis does not know it, or knows that it is not queued.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn why(&self, tenant_id: TenantId, job_id: JobId) -> Result<Option<Why>, Error> {
        let mut invocation = self.inner.scripts.why.key(self.root(self.shard_of(tenant_id)));
        invocation.arg(job_id.to_string()).arg(self.clock_offset_ms());
        let reply: Vec<String> = invocation.invoke_async(&mut self.connection().await?).await?;
        let [place, gate, at, ahead, alone, paused] = reply.as_slice() else {
            return Ok(None);
        };
        let ahead = ahead.parse().unwrap_or(0);
        let at_ms: u64 = at.parse().unwrap_or(0);
        let is_paused = paused == "1";
        let until = i64::try_from(at_ms).ok().filter(|_| at_ms > 0 && at_ms < FOREVER_MS);
        let place = match (place.as_str(), Shut::of(gate)) {
            ("l" | "o", _) => Place::Leased,
            ("d", _) => return Ok(None),
            (_, Some(by)) => Place::Shut {
                by,
                until: until.and_then(DateTime::from_timestamp_millis),
                is_paused,
                ahead,
            },
            (_, None) => Place::Backlog { ahead },
        };
        Ok(Some(Why {
            place,
            is_alone: alone == "1",
        }))
    }
}
