//! Sticky turns: who keeps a conversation's sandbox is offered its next turn for a moment, and then everyone.
//!
//! What is written here is a hint with an end of its own: without it a turn goes to whoever comes first.

use std::time::Duration;

use super::{Error, Gate, Queue};
use crate::ids::{ConversationId, TenantId, WorkerId};

impl Queue {
    /// Says that a worker keeps the sandbox of a conversation for so long.
    ///
    /// # Errors
    /// When Redis is away: the next turn may run anywhere.
    pub async fn say_kept(
        &self,
        tenant_id: TenantId,
        conversation_id: ConversationId,
        worker: WorkerId,
        keep: Duration,
    ) -> Result<(), Error> {
        let name = format!("kept:{}", Gate::conversation(conversation_id).as_str());
        let mut set = redis::cmd("SET");
        set.arg(self.key(self.shard_of(tenant_id), &name))
            .arg(worker.to_string())
            .arg("PX")
            .arg(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1));
        let _written: String = set.query_async(&mut self.link().await?).await?;
        Ok(())
    }
}
