//! Queues: the settings of those that have any, and what waits in them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::limits::{rate, rate_limit, rate_window_ms};
use super::row::int;
use super::{Error, Store};
use crate::ids::TenantId;
use crate::job::limit::Limit;

/// What operators set of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Its share of the free slots relative to other queues.
    pub weight: u32,
    /// Jobs that may run at once.
    pub max_running: Option<u32>,
    /// Jobs that may start within any window of this length.
    pub rate: Option<(u32, Duration)>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            weight: 1,
            max_running: None,
            rate: None,
        }
    }
}

impl QueueSettings {
    /// What its jobs are limited to.
    pub fn limit(&self) -> Limit {
        Limit {
            max_running: self.max_running,
            rate: self.rate,
            pause: None,
        }
    }
}

/// What may be changed of a queue; what is `None` stays, and the inner `None` removes a limit.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::option_option, reason = "absent and null mean different things in a patch")]
pub struct QueuePatch {
    /// A new weight.
    pub weight: Option<u32>,
    /// A new limit of running jobs.
    pub max_running: Option<Option<u32>>,
    /// A new limit of starts.
    pub rate: Option<Option<(u32, Duration)>>,
}

fn settings(row: &PgRow) -> Result<QueueSettings, Error> {
    let number = |column: &str| -> Result<Option<u32>, Error> {
        Ok(row
            .try_get::<Option<i32>, _>(column)?
            .and_then(|n| u32::try_from(n).ok()))
    };
    Ok(QueueSettings {
        weight: number("weight")?.unwrap_or(1),
        max_running: number("max_running")?,
        rate: rate(row)?,
    })
}

/// A named queue as a tenant sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Since when nothing of it is released to workers.
    pub paused_at: Option<DateTime<Utc>>,
    /// Its settings.
    pub settings: QueueSettings,
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
                (select queue, 'queued' as state from queued_jobs where tenant_id = $1 limit $2)
                union all
                (select queue, state from jobs where tenant_id = $1 and state = 'running'
                    and id in (select unnest(job_ids) from handouts) limit $2)
                union all
                (select queue, state from jobs
                    where tenant_id = $1 and due_at is not null and state in ('scheduled', 'retrying') limit $2)
             ), counted as (
                select queue, count(*) filter (where state = 'queued') as queued,
                    count(*) filter (where state = 'running') as running,
                    count(*) filter (where state in ('scheduled', 'retrying')) as scheduled
                from open group by queue
             )
             select coalesce(q.name, c.queue) as name, q.paused_at, q.weight, q.max_running, q.run_limit,
                q.run_window_ms, coalesce(c.queued, 0) as queued,
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
                    settings: settings(row)?,
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

    /// Changes the settings of a queue, which need not have any job yet.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn update_queue(
        &self,
        name: &str,
        patch: QueuePatch,
        now: DateTime<Utc>,
    ) -> Result<QueueSettings, Error> {
        let row = sqlx::query(
            "insert into queues (name, created_at, weight, max_running, run_limit, run_window_ms)
             values ($1, $2, coalesce($3, 1), $5, $7, $8)
             on conflict (name) do update set weight = coalesce($3, queues.weight),
                max_running = case when $4 then $5 else queues.max_running end,
                run_limit = case when $6 then $7 else queues.run_limit end,
                run_window_ms = case when $6 then $8 else queues.run_window_ms end
             returning weight, max_running, run_limit, run_window_ms",
        )
        .bind(name)
        .bind(now)
        .bind(patch.weight.map(int))
        .bind(patch.max_running.is_some())
        .bind(patch.max_running.flatten().map(int))
        .bind(patch.rate.is_some())
        .bind(rate_limit(patch.rate.flatten()))
        .bind(rate_window_ms(patch.rate.flatten()))
        .fetch_one(self.pool())
        .await?;
        settings(&row)
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
