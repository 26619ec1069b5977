//! Promoting: scheduled and retrying jobs become queued when their time has come, and waiting ones at their deadline.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::admit::{Decided, admit_queued};
use super::row::{self, qualified};
use super::{Error, Store, index};
use crate::job::Job;

/// What became of jobs whose time had come, or that are repeated.
#[derive(Clone, Debug, Default)]
pub struct Requeued {
    /// All of them, as they were when they were queued; those that are rejected have failed since.
    pub jobs: Vec<Job>,
    /// What the strategies of their keys decided.
    pub decided: Decided,
}

impl Requeued {
    /// Those that are queued still.
    pub fn admitted(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| !self.decided.rejected.contains(&job.id))
    }
}

impl Store {
    /// Queues up to `limit` jobs that are due, the longest due first, writes their `queued` event, and applies the strategies
    /// of those whose turn it is for the first time.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn promote(&self, now: DateTime<Utc>, limit: u32) -> Result<Requeued, Error> {
        self.within(async {
            let sql = format!(
                "with due as (
                    select id, due_at from jobs where due_at <= $1 order by due_at limit $2 for update skip locked
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
                 select promoted.* from promoted join due using (id) order by due.due_at, id",
                columns = qualified(),
                enter = index::enter("promoted"),
            );
            let mut tx = self.pool().begin().await?;
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(now)
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await?;
            let readable = |row| {
                row::job(row)
                    .inspect_err(|error| tracing::error!(%error, "promoted unread"))
                    .ok()
            };
            let jobs: Vec<Job> = rows.iter().filter_map(readable).collect();
            // A retry has been let in before.
            let decided = admit_queued(&mut tx, jobs.iter().filter(|job| job.attempt == 0), now).await?;
            tx.commit().await?;
            Ok(Requeued { jobs, decided })
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
