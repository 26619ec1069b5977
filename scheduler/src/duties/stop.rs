//! Stopping jobs: in Postgres first, then their workers, or Redis, hear of it.

use chrono::{DateTime, Utc};
use common::ids::{JobId, TenantId};
use common::queue::Queue;
use common::store::Store;

/// Stops these jobs and answers how many there were.
pub(super) async fn stop(
    store: &Store,
    queue: &Queue,
    jobs: &[(TenantId, JobId)],
    now: DateTime<Utc>,
) -> anyhow::Result<u64> {
    for (tenant_id, id) in jobs {
        if let Some(job) = store.cancel(*tenant_id, *id, now).await? {
            queue
                .cancel(job.tenant_id, job.id, job.seq, job.state.is_terminal())
                .await?;
        }
    }
    Ok(u64::try_from(jobs.len()).unwrap_or(u64::MAX))
}
