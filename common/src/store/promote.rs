//! Promoting: scheduled and retrying jobs become queued when their time has come, and waiting ones at their deadline.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::row::{self, qualified};
use super::{Error, Store, index};
use crate::job::Job;

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
}
