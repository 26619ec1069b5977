//! The journal: calls of models and tools that have ended, and those that began. Facts: inserted once, from any attempt
//! that existed, never changed; that a call began is forgotten when it has failed.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::row::int;
use super::{Error, Store};
use crate::ids::JobId;

/// A call that began, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalKey {
    /// Whose.
    pub job_id: JobId,
    /// The attempt that made it.
    pub attempt: u32,
    /// The step, from 0.
    pub step: u32,
    /// Which of the step's tool calls; none for the call of the model.
    pub place: Option<u32>,
    /// The attempt whose answer it builds on.
    pub parent: Option<u32>,
}

/// A call that has ended, with JSON of what it brought.
#[derive(Clone, Debug)]
pub struct JournalRow {
    /// Which call.
    pub key: JournalKey,
    /// What it brought.
    pub data: String,
}

/// How many calls have no end in the journal, and so are made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Calls of the model.
    pub model: u64,
    /// Calls of tools.
    pub tool: u64,
}

impl Unfinished {
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

fn place(key: &JournalKey) -> i32 {
    key.place.map_or(-1, int)
}

impl Store {
    /// Notes that a call begins.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn begin_call(&self, key: &JournalKey, at: DateTime<Utc>) -> Result<(), Error> {
        let query = sqlx::query(
            "insert into journal_begun (job_id, attempt, step, place, at) values ($1, $2, $3, $4, $5)
             on conflict do nothing",
        )
        .bind(key.job_id)
        .bind(int(key.attempt))
        .bind(int(key.step))
        .bind(place(key))
        .bind(at);
        let done = self.on(self.talking(), async |connection| query.execute(connection).await);
        done.await?;
        Ok(())
    }

    /// Forgets that a call began, because it is known to have failed.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn forget_call(&self, key: &JournalKey) -> Result<(), Error> {
        let query =
            sqlx::query("delete from journal_begun where job_id = $1 and attempt = $2 and step = $3 and place = $4")
                .bind(key.job_id)
                .bind(int(key.attempt))
                .bind(int(key.step))
                .bind(place(key));
        let done = self.on(self.talking(), async |connection| query.execute(connection).await);
        done.await?;
        Ok(())
    }

    /// Writes down what a call brought. Repeating it does nothing.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when the job has no such attempt, or is gone; when Postgres is away.
    pub async fn finish_call(&self, row: &JournalRow, at: DateTime<Utc>) -> Result<(), Error> {
        let key = &row.key;
        let query = sqlx::query(
            "with job as (select 1 from jobs where id = $1 and attempt >= $2), written as (
                insert into journal (job_id, attempt, step, place, parent, data, at)
                select $1, $2, $3, $4, $5, $6::text::json, $7 from job on conflict do nothing
             )
             select 1 from job",
        )
        .bind(key.job_id)
        .bind(int(key.attempt))
        .bind(int(key.step))
        .bind(place(key))
        .bind(key.parent.map(int))
        .bind(&row.data)
        .bind(at);
        let done = self.on(self.talking(), async |connection| {
            query.fetch_optional(connection).await
        });
        done.await?.map(drop).ok_or(Error::LeaseLost)
    }

    /// What attempts have finished, in no order.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn journal(&self, job_id: JobId) -> Result<Vec<JournalRow>, Error> {
        let rows =
            sqlx::query("select attempt, step, place, parent, data::text as data from journal where job_id = $1")
                .bind(job_id)
                .fetch_all(self.pool())
                .await?;
        let number = |value: i32| u32::try_from(value).ok();
        rows.iter()
            .map(|row| {
                let key = JournalKey {
                    job_id,
                    attempt: number(row.try_get("attempt")?).unwrap_or(0),
                    step: number(row.try_get("step")?).unwrap_or(0),
                    place: number(row.try_get("place")?),
                    parent: row.try_get::<Option<i32>, _>("parent")?.and_then(number),
                };
                Ok(JournalRow {
                    key,
                    data: row.try_get("data")?,
                })
            })
            .collect()
    }

    /// The last attempt of a job that ended by waiting, and so left its event log to those who follow; 0 when none did.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn last_waiting_attempt(&self, job_id: JobId) -> Result<u32, Error> {
        let last: Option<i32> =
            sqlx::query_scalar("select max(attempt) from attempts where job_id = $1 and outcome = 'waiting'")
                .bind(job_id)
                .fetch_one(self.pool())
                .await?;
        Ok(last.and_then(|attempt| u32::try_from(attempt).ok()).unwrap_or(0))
    }

    /// Calls of attempts from `from` on and before `before` that began and have no end.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn unfinished_calls(&self, job_id: JobId, from: u32, before: u32) -> Result<Unfinished, Error> {
        let (model, tool): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where b.place < 0), count(*) filter (where b.place >= 0) from journal_begun b
             where b.job_id = $1 and b.attempt >= $2 and b.attempt < $3 and not exists (select from journal j
                where j.job_id = b.job_id and j.attempt = b.attempt and j.step = b.step and j.place = b.place)",
        )
        .bind(job_id)
        .bind(int(from))
        .bind(int(before))
        .fetch_one(self.pool())
        .await?;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Unfinished {
            model: count(model),
            tool: count(tool),
        })
    }
}
