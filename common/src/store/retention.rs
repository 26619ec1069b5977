//! Forgetting: what is deleted, or dropped with its whole day, because it is old.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Error, Store, index};

/// What became of a day's partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// They are gone.
    Yes,
    /// A job of that day has not ended: they stay.
    Open,
    /// Somebody reads them, or writes to their tables, right now: try again later.
    Busy,
}

impl Store {
    /// Deletes up to `limit` idempotency keys that are older than `before`; answers how many.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_idempotency_keys(&self, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
        let done = sqlx::query(
            "delete from idempotency_keys where (tenant_id, key) in
                (select tenant_id, key from idempotency_keys where created_at < $1 order by created_at limit $2)",
        )
        .bind(before)
        .bind(i64::from(limit))
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected())
    }

    /// Deletes up to `limit` workers that were last heard of before `before` and hold nothing; answers how many.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_workers(&self, before: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
        let sql = format!(
            "delete from workers where id in
                (select id from workers where seen_at < $1 and coalesce(alive_until < $1, true) and not {}
                 order by seen_at limit $2)",
            index::runs_anything("workers.id")
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(before)
            .bind(i64::from(limit))
            .execute(self.pool())
            .await?;
        Ok(done.rows_affected())
    }

    /// Days before `before` that have a partition of `jobs`, oldest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn partition_days(&self, before: NaiveDate) -> Result<Vec<NaiveDate>, Error> {
        Ok(sqlx::query_scalar(
            "select to_date(right(c.relname, 8), 'YYYYMMDD') as day
             from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = 'jobs'::regclass and c.relname ~ '^jobs_[0-9]{8}$'
               and right(c.relname, 8) < to_char($1::date, 'YYYYMMDD')
             order by day",
        )
        .bind(before)
        .fetch_all(self.pool())
        .await?)
    }

    /// Drops the partitions of one day of `jobs`, `attempts` and `job_events`, unless a job of it has not ended, and
    /// forgets what its sandboxes connected to.
    ///
    /// Dropping locks the parent tables for a moment. It waits at most `patience` for that, because everybody else
    /// waits behind it.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn drop_partitions(&self, day: NaiveDate, patience: Duration) -> Result<Dropped, Error> {
        let date = day;
        let day = day.format("%Y%m%d");
        let mut tx = self.pool().begin().await?;
        if is_open(&mut tx, date).await? {
            return Ok(Dropped::Open);
        }
        forget_day(&mut tx, date).await?;
        // Deleting takes a while, and so does asking: all of it comes before the lock, behind which everybody waits. What has
        // ended stays so, and ids of new jobs are of today.
        if is_open(&mut tx, date).await? {
            return Ok(Dropped::Open);
        }
        let wait = format!("set local lock_timeout = {}", patience.as_millis());
        sqlx::query(AssertSqlSafe(wait)).execute(&mut *tx).await?;
        let drop = format!("drop table if exists jobs_{day}, attempts_{day}, job_events_{day}");
        match sqlx::query(AssertSqlSafe(drop)).execute(&mut *tx).await {
            Ok(_) => {}
            // 55P03: lock not available.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => return Ok(Dropped::Busy),
            Err(error) => return Err(error.into()),
        }
        tx.commit().await?;
        Ok(Dropped::Yes)
    }
}

/// Whether a job of a day has not ended.
async fn is_open(tx: &mut PgConnection, day: NaiveDate) -> Result<bool, Error> {
    let sql = format!(
        "select exists (select from jobs_{} where state not in ('succeeded', 'failed', 'cancelled'))",
        day.format("%Y%m%d")
    );
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *tx).await?)
}

/// Deletes what is kept beside the jobs of a day.
async fn forget_day(tx: &mut PgConnection, day: NaiveDate) -> Result<(), Error> {
    for table in [
        "egress_decisions",
        "journal",
        "journal_begun",
        "job_messages",
        "approvals",
    ] {
        let delete = format!(
            "delete from {table} where job_id >= uuid_floor($1::timestamp at time zone 'UTC')
                and job_id < uuid_floor(($1 + 1)::timestamp at time zone 'UTC')"
        );
        sqlx::query(AssertSqlSafe(delete)).bind(day).execute(&mut *tx).await?;
    }
    Ok(())
}
