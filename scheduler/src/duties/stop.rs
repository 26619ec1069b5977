//! Stopping jobs: in Postgres first, then their workers, or Redis, hear of it.

use chrono::{DateTime, Utc};
use common::cancel::Canceller;
use common::ids::{JobId, TenantId};
use common::queue::Queue;
use common::store::{Class, Store};
use common::turn;

use super::apart::apart;

/// Stops these jobs for a duty and answers how many it has stopped.
pub(super) async fn stop(
    duty: &'static str,
    (store, queue): (&Store, &Queue),
    jobs: &[(TenantId, JobId)],
    now: DateTime<Utc>,
) -> anyhow::Result<u64> {
    let canceller = Canceller::new(store.clone(), queue.clone());
    match canceller.all(jobs, now).await {
        Ok(stopped) => return Ok(stopped),
        Err(error) if error.class() == Class::Transient => return Err(error.into()),
        // One of them is at fault: which?
        Err(_) => {}
    }
    let mut stopped = 0;
    for (tenant_id, id) in jobs {
        let one = stop_one((store, queue), (*tenant_id, *id), now).await;
        stopped += u64::from(apart(duty, id, one)?.is_some());
    }
    let ids: Vec<JobId> = jobs.iter().map(|(_, id)| *id).collect();
    turn::dispatch_next(store, queue, &ids).await;
    Ok(stopped)
}

async fn stop_one(
    (store, queue): (&Store, &Queue),
    (tenant_id, id): (TenantId, JobId),
    now: DateTime<Utc>,
) -> anyhow::Result<()> {
    if let Some(job) = store.cancel(tenant_id, id, now).await? {
        queue
            .cancel(job.tenant_id, job.id, job.seq, job.state.is_terminal())
            .await?;
    }
    Ok(())
}
