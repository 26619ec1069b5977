//! Worker processes.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};

use super::row::int;
use super::{Error, Store, index};
use crate::ids::{JobId, WorkerId};

/// A worker process as it describes itself.
#[derive(Clone, Debug, Serialize)]
pub struct Worker {
    /// Its id, made anew at each start.
    pub id: WorkerId,
    /// A name for people, such as the host's.
    pub name: String,
    /// The version of Hothouse.
    pub version: String,
    /// Slots by class.
    pub slots: BTreeMap<String, u32>,
    /// Labels that jobs may require.
    pub labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    pub queues: Vec<String>,
    /// How it starts sandboxes.
    pub driver: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

/// A worker as the others see it.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerStatus {
    /// What it says of itself.
    #[serde(flatten)]
    pub worker: Worker,
    /// When it was last heard of.
    pub seen_at: DateTime<Utc>,
    /// Since when it claims nothing more.
    pub draining_at: Option<DateTime<Utc>>,
    /// Jobs that it runs.
    pub running: u64,
    /// Parts of it that made no progress when it was last heard of.
    pub stalled: Vec<String>,
}

/// A worker that was not heard of for so long is silent: three signs of life are missing.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// How long what a worker said of itself is believed: one that was silent for a moment still has what it had.
pub const BELIEVED_FOR: Duration = SILENT_AFTER.saturating_mul(2);

/// A worker in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It claims jobs.
    Live,
    /// It lives, and a part of it makes no progress.
    Stalled,
    /// It finishes what it holds.
    Draining,
    /// Nobody has heard of it for [`SILENT_AFTER`]: it died, stands still, or is cut off from Postgres.
    Silent,
}

impl WorkerStatus {
    /// How it is doing.
    pub fn state(&self, now: DateTime<Utc>) -> WorkerState {
        if self.seen_at + SILENT_AFTER <= now {
            WorkerState::Silent
        } else if self.draining_at.is_some() {
            WorkerState::Draining
        } else if self.stalled.is_empty() {
            WorkerState::Live
        } else {
            WorkerState::Stalled
        }
    }
}

impl Store {
    /// Registers a worker that starts.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn register_worker(&self, worker: &Worker) -> Result<(), Error> {
        sqlx::query(
            "insert into workers (id, name, version, slots, labels, queues, driver, started_at, seen_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(worker.id)
        .bind(&worker.name)
        .bind(&worker.version)
        .bind(Json(&worker.slots))
        .bind(&worker.labels)
        .bind(&worker.queues)
        .bind(&worker.driver)
        .bind(worker.started_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Says that a worker lives, and which of its parts make no progress; answers whether it was asked to drain.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn worker_seen(&self, id: WorkerId, now: DateTime<Utc>, stalled: &[String]) -> Result<bool, Error> {
        self.within(async {
            let draining: Option<Option<DateTime<Utc>>> =
                sqlx::query_scalar("update workers set seen_at = $2, stalled = $3 where id = $1 returning draining_at")
                    .bind(id)
                    .bind(now)
                    .bind(stalled)
                    .fetch_optional(self.pool())
                    .await?;
            Ok(draining.flatten().is_some())
        })
        .await
    }

    /// Says in Postgres that a worker's leases hold until `until`, because it cannot say so in Redis.
    ///
    /// # Errors
    /// When Postgres is away too.
    pub async fn worker_alive_until(&self, id: WorkerId, until: DateTime<Utc>) -> Result<(), Error> {
        self.within(async {
            sqlx::query("update workers set alive_until = $2 where id = $1")
                .bind(id)
                .bind(until)
                .execute(self.pool())
                .await?;
            Ok(())
        })
        .await
    }

    /// Asks a worker to claim nothing more. Answers whether there is such a worker.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn drain_worker(&self, id: WorkerId, now: DateTime<Utc>) -> Result<bool, Error> {
        let done = sqlx::query(
            "update workers set draining_at = coalesce(draining_at, $2) where id = $1 and stopped_at is null",
        )
        .bind(id)
        .bind(now)
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Says that a worker has stopped and holds nothing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn worker_stopped(&self, id: WorkerId, now: DateTime<Utc>) -> Result<(), Error> {
        sqlx::query("update workers set stopped_at = $2, alive_until = null where id = $1")
            .bind(id)
            .bind(now)
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Workers that have not stopped and were heard of within `within`, in order of their start.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn workers(&self, now: DateTime<Utc>, within: Duration) -> Result<Vec<WorkerStatus>, Error> {
        let rows = sqlx::query(
            "select id, name, version, slots, labels, queues, driver, started_at, seen_at, draining_at, stalled,
                (select count(distinct jobs.id) from handouts h, unnest(h.job_ids) as held(id), jobs
                    where h.worker_id = workers.id and jobs.id = held.id and jobs.state = 'running'
                        and jobs.worker_id = workers.id) as running
             from workers where stopped_at is null and seen_at > $1 order by id",
        )
        .bind(now - within)
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(status).collect()
    }

    /// Whether a worker of this installation is gone: it has stopped, or was not heard of since `before`, and no job says
    /// that it runs there. One that the table does not name is not ours: several installations may share a machine. One
    /// that runs jobs cannot reach Postgres just now, or its jobs are about to be taken over.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn is_worker_gone(&self, id: WorkerId, before: DateTime<Utc>) -> Result<bool, Error> {
        let sql = format!(
            "select exists (select from workers where id = $1 and (stopped_at is not null or seen_at < $2)) and not {}",
            index::runs_anything("$1")
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(id)
            .bind(before)
            .fetch_one(self.pool())
            .await?)
    }

    /// Of these attempts, those that are still the worker's: what it may go on with when Redis cannot say so. Waits for a
    /// takeover that is under way.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn held(&self, id: WorkerId, attempts: &[(JobId, u32)]) -> Result<Vec<JobId>, Error> {
        self.within(async {
            Ok(sqlx::query_scalar(
                "select jobs.id from jobs join unnest($2::uuid[], $3::integer[]) as h(id, attempt) on jobs.id = h.id
                 where jobs.id = any($2) and jobs.state = 'running' and jobs.attempt = h.attempt and jobs.worker_id = $1
                 for share of jobs",
            )
            .bind(id)
            .bind(attempts.iter().map(|(job, _)| job.uuid()).collect::<Vec<_>>())
            .bind(attempts.iter().map(|(_, attempt)| int(*attempt)).collect::<Vec<_>>())
            .fetch_all(self.pool())
            .await?)
        })
        .await
    }
}

fn status(row: &PgRow) -> Result<WorkerStatus, Error> {
    Ok(WorkerStatus {
        worker: Worker {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            slots: row.try_get::<Json<_>, _>("slots")?.0,
            labels: row.try_get("labels")?,
            queues: row.try_get("queues")?,
            driver: row.try_get("driver")?,
            started_at: row.try_get("started_at")?,
        },
        seen_at: row.try_get("seen_at")?,
        draining_at: row.try_get("draining_at")?,
        running: u64::try_from(row.try_get::<i64, _>("running")?).unwrap_or(0),
        stalled: row.try_get("stalled")?,
    })
}
