//! Attempts that ended.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::{Error, Store};
use crate::ids::{JobId, WorkerId};

/// One ended attempt.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "an attempt's number is called attempt everywhere"
)]
pub struct Attempt {
    /// Its number, from 1.
    pub attempt: u32,
    /// Who ran it.
    pub worker_id: WorkerId,
    /// When it was claimed.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// What became of the job.
    pub outcome: String,
    /// Why it failed, code and message.
    pub error: Option<(String, String)>,
}

impl Store {
    /// The ended attempts of a job, in order. The one under way is in the job itself.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn attempts(&self, job_id: JobId) -> Result<Vec<Attempt>, Error> {
        let rows = sqlx::query(
            "select attempt, worker_id, started_at, finished_at, outcome, error_code, error_message
             from attempts where job_id = $1 order by attempt",
        )
        .bind(job_id)
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                let code: Option<String> = row.try_get("error_code")?;
                let message: Option<String> = row.try_get("error_message")?;
                Ok(Attempt {
                    attempt: u32::try_from(row.try_get::<i32, _>("attempt")?).unwrap_or(0),
                    worker_id: row.try_get("worker_id")?,
                    started_at: row.try_get("started_at")?,
                    finished_at: row.try_get("finished_at")?,
                    outcome: row.try_get("outcome")?,
                    error: code.map(|code| (code, message.unwrap_or_default())),
                })
            })
            .collect()
    }
}
