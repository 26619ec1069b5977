//! Promoting: scheduled and retrying jobs become queued when their time has come, and waiting ones at their deadline.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::row::{self, qualified};
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::Job;
use crate::job::spec::LEVEL_HEAD_START;

/// A queued job, as far as it must be known to see whether Redis knows it.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
#[expect(clippy::struct_field_names, reason = "the column is called queued_at everywhere")]
pub struct Queued {
    /// The job.
    pub id: JobId,
    /// Decides the shard.
    pub tenant_id: TenantId,
    /// When it last became queued.
    pub queued_at: DateTime<Utc>,
}

impl Store {
    /// Queues up to `limit` jobs that are due, the longest due first, and writes their `queued` event.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn promote(&self, now: DateTime<Utc>, limit: u32) -> Result<Vec<Job>, Error> {
        self.within(async {
            let sql = format!(
                "with due as (
                    select id from jobs where due_at <= $1 order by due_at limit $2 for update skip locked
                 ), promoted as (
                    update jobs set state = 'queued', queued_at = $1, due_at = null, seq = jobs.seq + 1,
                        woken_by = case when jobs.state = 'waiting' then 'deadline' else jobs.woken_by end
                    from due where jobs.id = due.id and jobs.state in ('scheduled', 'retrying', 'waiting')
                    returning {columns}
                 ), written as (
                    insert into job_events (job_id, first_seq, last_seq, data)
                    select id, seq, seq, convert_to(json_build_object(
                        'seq', seq, 'at', queued_at, 'attempt', attempt, 'type', 'queued')::text, 'UTF8')
                    from promoted
                 )
                 select * from promoted",
                columns = qualified()
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(now)
                .bind(i64::from(limit))
                .fetch_all(self.pool())
                .await?;
            rows.iter().map(row::job).collect()
        })
        .await
    }

    /// When the next job is due: a scheduled or retrying one, or the deadline of one that waits. It may have passed.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn next_due_at(&self) -> Result<Option<DateTime<Utc>>, Error> {
        let sql = "select due_at from jobs where due_at is not null order by due_at limit 1";
        Ok(sqlx::query_scalar(sql).fetch_optional(self.pool()).await?)
    }

    /// Queued jobs with an id above `after`, in order of id: the slow cursor of redispatch.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_after(&self, after: JobId, limit: u32) -> Result<Vec<Queued>, Error> {
        self.within(async {
            Ok(sqlx::query_as(
                "select id, tenant_id, queued_at from jobs where state = 'queued' and id > $1 order by id limit $2",
            )
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?)
        })
        .await
    }

    /// Jobs between two ids that are queued, in order of id. Few rows lie between them, so it goes by the primary key
    /// whatever the number of queued rows.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_between(&self, after: JobId, until: JobId, limit: u32) -> Result<Vec<Queued>, Error> {
        self.within(async {
            // With a plain comparison the planner would read and sort all queued rows, by their partial index.
            Ok(sqlx::query_as(
                "select id, tenant_id, queued_at from jobs
                 where id > $1 and id < $2 and coalesce(state, '') = 'queued' order by id limit $3",
            )
            .bind(after)
            .bind(until)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?)
        })
        .await
    }

    /// Queued jobs of one tenant, queue and class that come next, as the queue orders them: by age, each level a head start
    /// older. So what waits here of a low level starves no more than it does in Redis.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_of(
        &self,
        tenant_id: TenantId,
        queue: &str,
        class: &str,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        self.within(async {
            let sql = format!(
                "select next.* from generate_series(0, 9) as level cross join lateral (
                    select {} from jobs where state = 'queued' and tenant_id = $1 and queue = $2 and class = $3
                        and priority = level order by id limit $4
                 ) as next order by next.created_at - next.priority * $5::interval, next.id limit $4",
                row::COLUMNS
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(tenant_id)
                .bind(queue)
                .bind(class)
                .bind(i64::from(limit))
                .bind(LEVEL_HEAD_START)
                .fetch_all(self.pool())
                .await?;
            rows.iter().map(row::job).collect()
        })
        .await
    }

    /// The tenants, queues and classes that have queued jobs.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_lanes(&self) -> Result<Vec<(TenantId, String, String)>, Error> {
        self.within(async {
            Ok(
                sqlx::query_as("select distinct tenant_id, queue, class from jobs where state = 'queued'")
                    .fetch_all(self.pool())
                    .await?,
            )
        })
        .await
    }
}
