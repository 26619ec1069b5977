//! Queues: the settings of those that have any, and what waits in them.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Error, Store};
use crate::ids::TenantId;

/// A named queue as a tenant sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Since when nothing of it is released to workers.
    pub paused_at: Option<DateTime<Utc>>,
    /// The tenant's jobs that may run.
    pub queued: u64,
    /// The tenant's jobs that run.
    pub running: u64,
    /// The tenant's jobs that run later.
    pub scheduled: u64,
}

/// Counting stops here: a backlog of millions must not make a page of numbers slow.
const COUNT_MAX: i64 = 100_000;

impl Store {
    /// Every queue that has settings or open jobs of the tenant, by name. Counts stop at 100,000.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queues(&self, tenant_id: TenantId) -> Result<Vec<QueueStatus>, Error> {
        let rows = sqlx::query(
            "with open as (
                (select queue, state from jobs where tenant_id = $1 and state = 'queued' limit $2)
                union all
                (select queue, state from jobs where tenant_id = $1 and state = 'running' limit $2)
                union all
                (select queue, state from jobs where tenant_id = $1 and state in ('scheduled', 'retrying') limit $2)
             ), counted as (
                select queue, count(*) filter (where state = 'queued') as queued,
                    count(*) filter (where state = 'running') as running,
                    count(*) filter (where state in ('scheduled', 'retrying')) as scheduled
                from open group by queue
             )
             select coalesce(q.name, c.queue) as name, q.paused_at, coalesce(c.queued, 0) as queued,
                coalesce(c.running, 0) as running, coalesce(c.scheduled, 0) as scheduled
             from queues q full join counted c on c.queue = q.name order by name",
        )
        .bind(tenant_id)
        .bind(COUNT_MAX)
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                let count = |column: &str| -> Result<u64, Error> {
                    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
                };
                Ok(QueueStatus {
                    name: row.try_get("name")?,
                    paused_at: row.try_get("paused_at")?,
                    queued: count("queued")?,
                    running: count("running")?,
                    scheduled: count("scheduled")?,
                })
            })
            .collect()
    }

    /// Pauses or resumes a queue, which need not have any job yet. Pausing a paused queue changes nothing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn set_queue_paused(&self, name: &str, paused: bool, now: DateTime<Utc>) -> Result<(), Error> {
        sqlx::query(
            "insert into queues (name, paused_at, created_at) values ($1, case when $2 then $3 end, $3)
             on conflict (name) do update set paused_at = case when $2 then coalesce(queues.paused_at, $3) end",
        )
        .bind(name)
        .bind(paused)
        .bind(now)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// The queues that are paused.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn paused_queues(&self) -> Result<Vec<String>, Error> {
        Ok(
            sqlx::query_scalar("select name from queues where paused_at is not null order by name")
                .fetch_all(self.pool())
                .await?,
        )
    }
}
