//! The reaper: destroys sandboxes whose worker is dead.
//!
//! A sandbox dies with the connection of its worker, so there is rarely anything to do: a container that was created
//! and not started yet, or an engine that was away just then. Found by labels, judged by the worker's row in the
//! store, which the caller asks; never because something is missing in Redis.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{Instant, sleep};

use super::Inner;
use crate::driver::{Error, Found};

/// What is younger may be about to appear in its worker's books.
const AGE_MIN: TimeDelta = TimeDelta::seconds(30);

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Sandboxes found, those in use too.
    pub found: usize,
    /// Orphans destroyed.
    pub destroyed: usize,
    /// Orphans that are still there.
    pub failed: usize,
}

/// A pass at once, and one every `interval`, until the pool stops.
pub(super) async fn run(pool: Arc<Inner>, interval: Duration) {
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = pool.stop.cancelled() => return,
            () = sleep(next.saturating_duration_since(Instant::now())) => {}
        }
        next = Instant::now() + interval;
        match tick(&pool, pool.clock.now()).await {
            Ok(report) if report.destroyed + report.failed > 0 => {
                tracing::info!(?report, "sandboxes of dead workers were destroyed");
            }
            Ok(_) => {}
            Err(e) => {
                tracing::warn!(error = %e, "sandboxes of dead workers could not be looked for");
                // Whatever keeps the engine from answering is not over in an hour only.
                next = Instant::now() + interval.min(Duration::from_secs(30));
            }
        }
    }
}

/// One pass. Idempotent.
pub(super) async fn tick(pool: &Inner, now: DateTime<Utc>) -> Result<Report, Error> {
    let found = pool.driver.list().await?;
    let mut report = Report {
        found: found.len(),
        ..Report::default()
    };
    for sandbox in found {
        if is_orphan(pool, &sandbox, now).await {
            match pool.driver.destroy(sandbox.id).await {
                Ok(()) => report.destroyed += 1,
                Err(e) => {
                    report.failed += 1;
                    tracing::warn!(sandbox_id = %sandbox.id, error = %e, "an orphan could not be destroyed");
                }
            }
        }
    }
    metrics::counter!("hothouse_sandboxes_reaped_total").increment(report.destroyed as u64);
    Ok(report)
}

/// Destroys whatever is left of this pool's worker. For its end.
pub(super) async fn destroy_own(pool: &Inner) {
    let found = match pool.driver.list().await {
        Ok(found) => found,
        Err(e) => {
            tracing::warn!(error = %e, "sandboxes may be left behind; the next worker's reaper takes them");
            return;
        }
    };
    for sandbox in found.into_iter().filter(|found| found.worker_id == pool.worker_id) {
        if let Err(e) = pool.driver.destroy(sandbox.id).await {
            tracing::warn!(sandbox_id = %sandbox.id, error = %e, "a sandbox is left behind");
        }
    }
}

async fn is_orphan(pool: &Inner, sandbox: &Found, now: DateTime<Utc>) -> bool {
    if now - sandbox.created_at < AGE_MIN {
        return false;
    }
    if sandbox.worker_id == pool.worker_id {
        return !pool.knows(sandbox.id);
    }
    !(pool.asks.is_alive)(sandbox.worker_id).await
}
