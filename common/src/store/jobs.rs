//! Reading one job.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::row::{self, COLUMNS};
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::Job;

/// A job with its input and result.
#[derive(Clone, Debug)]
pub struct JobDetail {
    /// Everything else.
    pub job: Job,
    /// JSON of the input.
    pub input: Vec<u8>,
    /// JSON of the result, when there is one.
    pub result: Option<Vec<u8>>,
}

impl Store {
    /// A tenant's job with its input and result; `None` when there is none, or it is another tenant's.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn job(&self, tenant_id: TenantId, id: JobId) -> Result<Option<JobDetail>, Error> {
        let sql = format!("select {COLUMNS}, input, result from jobs where id = $1 and tenant_id = $2");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(tenant_id);
        let row = self.on(self.reading(), async |connection| {
            query.fetch_optional(connection).await
        });
        let row = row.await?;
        let detail = |row: PgRow| {
            Ok(JobDetail {
                job: row::job(&row)?,
                input: row.try_get("input")?,
                result: row.try_get("result")?,
            })
        };
        row.map(detail).transpose()
    }

    /// Jobs by id, whosever they are, in no order; for the parts of Hothouse that act for every tenant.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn jobs(&self, ids: &[JobId]) -> Result<Vec<Job>, Error> {
        self.within(async {
            let sql = format!("select {COLUMNS} from jobs where id = any($1)");
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(ids).fetch_all(self.pool()).await?;
            rows.iter().map(row::job).collect()
        })
        .await
    }

    /// Of these jobs, those that have not ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn still_open(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        self.within(async {
            let sql = "select id from jobs where id = any($1) and state not in ('succeeded', 'failed', 'cancelled')";
            Ok(sqlx::query_scalar(sql).bind(ids).fetch_all(self.pool()).await?)
        })
        .await
    }
}
