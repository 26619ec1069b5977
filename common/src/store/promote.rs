//! Promoting: scheduled and retrying jobs become queued when their time has come, and waiting ones at their deadline.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::row::{self, qualified};
use super::{Error, Store, index};
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

/// A place in the order of all queued jobs.
#[derive(Clone, Debug)]
pub struct Place {
    tenant_id: TenantId,
    queue: String,
    class: String,
    priority: i16,
    id: JobId,
}

/// A page of them.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The jobs.
    pub queued: Vec<Queued>,
    /// Those that are not queued any more, and whose place was left behind.
    pub left: Vec<JobId>,
    /// Where the next page begins; none after the last.
    pub next: Option<Place>,
}

impl Place {
    /// Before all of them.
    pub fn first() -> Self {
        Self {
            tenant_id: TenantId(Uuid::nil()),
            queue: String::new(),
            class: String::new(),
            priority: 0,
            id: JobId(Uuid::nil()),
        }
    }

    fn from_row(row: &PgRow) -> Result<Self, Error> {
        Ok(Self {
            tenant_id: row.try_get("tenant_id")?,
            queue: row.try_get("queue")?,
            class: row.try_get("class")?,
            priority: row.try_get("priority")?,
            id: row.try_get("id")?,
        })
    }
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
                 ), queued as ({enter})
                 select * from promoted",
                columns = qualified(),
                enter = index::enter("promoted"),
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

    /// Queued jobs after a place in the order of their tenants, queues, classes and levels, and where to go on, if there are
    /// more: the slow cursor of redispatch.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_after(&self, after: &Place, limit: u32) -> Result<Page, Error> {
        self.within(async {
            let rows = sqlx::query(
                "select q.*, jobs.queued_at from (
                    select * from queued_jobs where (tenant_id, queue, class, priority, id) > ($1, $2, $3, $4, $5)
                    order by tenant_id, queue, class, priority, id limit $6
                 ) q left join jobs on jobs.id = q.id and jobs.state = 'queued'
                 order by q.tenant_id, q.queue, q.class, q.priority, q.id",
            )
            .bind(after.tenant_id)
            .bind(&after.queue)
            .bind(&after.class)
            .bind(after.priority)
            .bind(after.id)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
            let is_full = rows.len() == usize::try_from(limit).unwrap_or(usize::MAX);
            let mut page = Page {
                next: rows.last().filter(|_| is_full).map(Place::from_row).transpose()?,
                ..Page::default()
            };
            for row in &rows {
                let (id, tenant_id) = (row.try_get("id")?, row.try_get("tenant_id")?);
                match row.try_get("queued_at")? {
                    Some(queued_at) => page.queued.push(Queued {
                        id,
                        tenant_id,
                        queued_at,
                    }),
                    None => page.left.push(id),
                }
            }
            Ok(page)
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
                // The limit of one makes the planner look up each row by its key. Where it believes that many are queued it would
                // read all rows of all days instead, once for each level.
                "select next.* from generate_series(0, 9) as level cross join lateral (
                    select job.* from queued_jobs q cross join lateral (
                        select {} from jobs where jobs.id = q.id and jobs.state = 'queued' limit 1
                    ) as job
                    where q.tenant_id = $1 and q.queue = $2 and q.class = $3 and q.priority = level order by q.id limit $4
                 ) as next order by next.created_at - next.priority * $5::interval, next.id limit $4",
                qualified()
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
                sqlx::query_as("select distinct tenant_id, queue, class from queued_jobs")
                    .fetch_all(self.pool())
                    .await?,
            )
        })
        .await
    }
}
