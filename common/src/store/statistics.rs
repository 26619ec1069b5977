//! What Postgres counts of itself: for measurements, not for decisions.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Error, Store};

/// Counters and sizes of the database at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Transactions since the counters began; one that only reads counts too.
    pub transactions: u64,
    /// Live rows of `jobs`, `attempts` and `job_events`, by the statistics collector's estimate.
    pub live_rows: u64,
    /// Dead rows of the same tables that are not vacuumed yet, by the same estimate.
    pub dead_rows: u64,
    /// Bytes of the same tables with their indexes.
    pub bytes: u64,
    /// Of these, the bytes of indexes.
    pub index_bytes: u64,
}

impl Store {
    /// Reads the counters.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn statistics(&self) -> Result<Statistics, Error> {
        let row = sqlx::query(
            "select
                (select xact_commit + xact_rollback from pg_stat_database where datname = current_database())::bigint
                    as transactions,
                coalesce(sum(s.n_live_tup), 0)::bigint as live_rows, coalesce(sum(s.n_dead_tup), 0)::bigint as dead_rows,
                coalesce(sum(pg_total_relation_size(s.relid)), 0)::bigint as bytes,
                coalesce(sum(pg_indexes_size(s.relid)), 0)::bigint as index_bytes
             from pg_stat_user_tables s join pg_inherits i on i.inhrelid = s.relid
             where i.inhparent in ('jobs'::regclass, 'attempts'::regclass, 'job_events'::regclass)",
        )
        .fetch_one(self.pool())
        .await?;
        let count =
            |column: &str| -> Result<u64, Error> { Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0)) };
        Ok(Statistics {
            transactions: count("transactions")?,
            live_rows: count("live_rows")?,
            dead_rows: count("dead_rows")?,
            bytes: count("bytes")?,
            index_bytes: count("index_bytes")?,
        })
    }

    /// How many jobs of a queue, of whatever tenant, ended between two times.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ended_between(&self, queue: &str, from: DateTime<Utc>, until: DateTime<Utc>) -> Result<u64, Error> {
        let ended: i64 =
            sqlx::query_scalar("select count(*) from jobs where queue = $1 and finished_at >= $2 and finished_at < $3")
                .bind(queue)
                .bind(from)
                .bind(until)
                .fetch_one(self.pool())
                .await?;
        Ok(u64::try_from(ended).unwrap_or(0))
    }

    /// Commits one small durable record that no table keeps, and answers how long that took, on a connection that is
    /// open: the least that any acknowledged write can take.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn time_of_a_commit(&self) -> Result<Duration, Error> {
        let mut connection = self.pool().acquire().await?;
        let begun = Instant::now();
        sqlx::query("select pg_logical_emit_message(true, 'hothouse', 'a commit')::text")
            .execute(&mut *connection)
            .await?;
        Ok(begun.elapsed())
    }
}
