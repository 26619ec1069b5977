//! Asking a job to stop.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::bulk::{Changed, StoppedBatch, stopped};
use super::row::{self, qualified};
use super::steering::leave_turn;
use super::{Error, Store, index, wait};
use crate::ids::{JobId, TenantId};
use crate::job::Job;

/// SQL: what is set of a job that is asked to stop at $3: one that nobody holds is cancelled by it.
const CANCELLED: &str = "cancel_requested_at = coalesce(cancel_requested_at, $3),
    seq = case when state = 'running' then seq else seq + 1 end,
    finished_at = case when state = 'running' then null else $3 end,
    due_at = null,
    error_code = case when state = 'running' then error_code end,
    error_message = case when state = 'running' then error_message end,
    state = case when state = 'running' then state else 'cancelled' end";

impl Store {
    /// Commits the request. A job that nobody holds is cancelled by it; one that runs is cancelled when its worker
    /// obeys; one that has ended stays as it is. Answers the job after it; `None` when the tenant has no such job.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn cancel(&self, tenant_id: TenantId, id: JobId, now: DateTime<Utc>) -> Result<Option<Job>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let sql = format!(
                "with changed as (update jobs set {CANCELLED}
                 where id = $1 and tenant_id = $2 and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying')
                 returning {}), left_queue as ({}) select * from changed",
                qualified(),
                index::leave("changed"),
            );
            let changed = sqlx::query(AssertSqlSafe(sql))
                .bind(id)
                .bind(tenant_id)
                .bind(now)
                .fetch_optional(&mut *tx)
                .await?;
            let Some(changed) = changed else {
                tx.commit().await?;
                return Ok(self.job(tenant_id, id).await?.map(|detail| detail.job));
            };
            let job = row::job(&changed)?;
            if let Some(conversation_id) = job.conversation_id
                && job.state.is_terminal()
            {
                leave_turn(&mut tx, id, conversation_id, now).await?;
            }
            if job.state.is_terminal()
                && let Some(parent_id) = job.parent_id
            {
                // Redispatch brings it to Redis: its caller cancels one job and knows of no other.
                wait::wake(&mut tx, &[parent_id], now).await?;
            }
            tx.commit().await?;
            Ok(Some(job))
        })
        .await
    }

    /// Cancels these jobs of a tenant, as [`Self::cancel`] does one, whether or not they were asked to stop before. Those
    /// that have ended are not named in the answer.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn cancel_all(
        &self,
        tenant_id: TenantId,
        ids: &[JobId],
        now: DateTime<Utc>,
    ) -> Result<StoppedBatch, Error> {
        self.within(async {
            let sql = format!(
                "with found as materialized (
                    select id from jobs where id = any($1) and tenant_id = $2 and finished_at is null order by id for update
                 ), changed as (
                    update jobs set {CANCELLED} from found where jobs.id = found.id and jobs.id = any($1)
                    returning jobs.id, jobs.seq, jobs.state, jobs.parent_id, jobs.conversation_id, jobs.tenant_id, jobs.queue,
                        jobs.class, jobs.priority
                 ), freed as (
                    update conversations c set active_job_id = null from changed
                    where c.id = changed.conversation_id and c.active_job_id = changed.id and changed.state = 'cancelled'
                 ), left_queue as ({leave})
                 select id, seq, state, parent_id, conversation_id from changed",
                leave = index::leave("changed"),
            );
            let mut tx = self.pool().begin().await?;
            let rows: Vec<Changed> = sqlx::query_as(AssertSqlSafe(sql))
                .bind(ids)
                .bind(tenant_id)
                .bind(now)
                .fetch_all(&mut *tx)
                .await?;
            let batch = stopped(&mut tx, rows, now).await?;
            tx.commit().await?;
            Ok(batch)
        })
        .await
    }

    /// Of these jobs, those that somebody asked to cancel and that still run.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn cancels_requested(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        Ok(sqlx::query_scalar(
            "select id from jobs where id = any($1) and state = 'running' and cancel_requested_at is not null",
        )
        .bind(ids)
        .fetch_all(self.pool())
        .await?)
    }
}
