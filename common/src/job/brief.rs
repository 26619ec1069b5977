//! What the queue must know of a job to make it known to the workers.

use chrono::{DateTime, Utc};

use super::{Concurrency, Job, Rate};
use crate::ids::{AgentId, ConversationId, JobId, TenantId};

/// A queued job, as far as it is dispatched. Backlogs are read by the ten thousand, and a whole [`Job`] is three times as much.
#[derive(Clone, Debug, PartialEq)]
pub struct Brief {
    /// The job.
    pub id: JobId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The queue.
    pub queue: String,
    /// What a slot must be.
    pub class: String,
    /// From 0 to 9, the highest first.
    pub priority: u8,
    /// The last attempt; 0 before the first.
    pub attempt: u32,
    /// Workers that died under it.
    pub losses: u32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// The agent that it runs.
    pub agent_id: Option<AgentId>,
    /// The conversation that it is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// What it may not run beside.
    pub concurrency: Option<Concurrency>,
    /// How often jobs like it may begin.
    pub rate: Option<Rate>,
}

impl From<&Job> for Brief {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id,
            tenant_id: job.tenant_id,
            queue: job.queue.clone(),
            class: job.class.clone(),
            priority: job.priority,
            attempt: job.attempt,
            losses: job.losses,
            created_at: job.created_at,
            agent_id: job.agent_id,
            conversation_id: job.conversation_id,
            concurrency: job.concurrency.clone(),
            rate: job.rate.clone(),
        }
    }
}
