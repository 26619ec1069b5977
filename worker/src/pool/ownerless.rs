//! Sandboxes that are kept for a conversation or an agent which was deleted meanwhile: nobody comes for them, and what was
//! said or done there should not outlive it for as long as a sandbox is kept.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::shelf::Who;

/// How often it is asked whether those for whom sandboxes are kept are still there.
const LOOK: Duration = Duration::from_secs(30);

/// Runs until the pool stops.
pub(super) async fn run(pool: Arc<Inner>) {
    loop {
        tokio::select! {
            () = pool.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        tick(&pool).await;
    }
}

/// Looks once.
pub(super) async fn tick(pool: &Arc<Inner>) {
    for shelf in pool.shelves.values() {
        for owner in shelf.kept_for() {
            let Who::Workspace(of) = owner.who else { continue };
            if (pool.asks.is_there)(owner.tenant_id, of).await {
                continue;
            }
            for (warm, retiring) in shelf.take_kept(&owner) {
                tracing::info!(sandbox_id = %warm.id, owner = of.kind(), id = %of.id(), "a sandbox is kept for nobody any more");
                pool.destroy(warm.id, Some(warm.sandbox), retiring);
            }
        }
    }
}
