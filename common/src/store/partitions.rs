//! Daily partitions of `jobs`, `attempts` and `job_events`.

use chrono::NaiveDate;

use super::{Error, Store};

impl Store {
    /// Makes the partitions from one UTC day to another, both included; answers how many were missing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ensure_partitions(&self, first: NaiveDate, last: NaiveDate) -> Result<u64, Error> {
        let made: i32 = sqlx::query_scalar("select ensure_partitions($1, $2)")
            .bind(first)
            .bind(last)
            .fetch_one(self.pool())
            .await?;
        Ok(u64::try_from(made).unwrap_or(0))
    }

    /// Rows in the default partition of `jobs`: more than none means that a day has no partition.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn default_partition_rows(&self) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("select count(*) from (select 1 from jobs_default limit 1000) as stray")
            .fetch_one(self.pool())
            .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
