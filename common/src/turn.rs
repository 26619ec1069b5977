//! Turns of a conversation that wait for the one before, beyond what Redis knows.
//!
//! Postgres refuses a turn at its claim while an older one of its conversation is open: one whose level is higher, or that
//! Redis handed out because it forgot, or never knew, who is before it. Such a turn is dropped from Redis, and whoever ends a
//! turn, or finds that one ended just before the refusal, makes the next one known again.

use crate::ids::JobId;
use crate::queue::{Dispatch, Queue};
use crate::store::Store;

/// Makes the next turns known of the conversations of which these jobs are turns: those that a claim would take now, so that
/// it may be called at any time. To be called when some of them have ended, or were refused; others cost a look at Postgres.
pub async fn dispatch_next(store: &Store, queue: &Queue, of: &[JobId]) {
    if !of.is_empty() {
        // Few come here, and all who may would carry its size.
        Box::pin(look(store, queue, of)).await;
    }
}

async fn look(store: &Store, queue: &Queue, of: &[JobId]) {
    let next = match store.next_turns(of).await {
        Ok(next) if next.is_empty() => return,
        Ok(next) => next,
        Err(error) => {
            tracing::warn!(%error, "redispatch finds the next turns");
            return;
        }
    };
    let dispatches: Vec<Dispatch> = next.iter().map(Dispatch::from_brief).collect();
    if let Err(error) = queue.dispatch(&dispatches).await {
        tracing::warn!(%error, turns = next.len(), "redispatch finds the next turns");
    }
}
