//! Rolling over to a newer image: what starts is of the image that the environment's name stands for, what is warm of an
//! older one is retired, and what a job has stays until the job ends.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;

/// How often it is asked what an image's name stands for.
const LOOK: Duration = Duration::from_secs(10);

/// Runs until the pool stops.
pub(super) async fn run(pool: Arc<Inner>) {
    loop {
        tick(&pool).await;
        tokio::select! {
            () = pool.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Looks once.
pub(super) async fn tick(pool: &Arc<Inner>) {
    for shelf in pool.shelves.values() {
        match pool.driver.image_id(&shelf.environment.image()).await {
            Ok(id) => {
                let old = shelf.roll_over(id);
                if old.is_empty() {
                    continue;
                }
                let count = old.len();
                tracing::info!(
                    environment = shelf.environment.name,
                    count,
                    "sandboxes of an older image are retired"
                );
                for (warm, retiring) in old {
                    pool.destroy(warm.id, Some(warm.sandbox), retiring);
                }
                pool.wake.notify_one();
            }
            // Starts say the same, and louder.
            Err(error) => tracing::debug!(%error, "images cannot be looked at"),
        }
    }
}
