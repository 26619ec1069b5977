//! Where queued and running jobs are found: in tables of their own, so that no index of `jobs` changes with a state.
//!
//! # Invariants
//! - Whoever makes a job `queued` inserts its row into `queued_jobs` in the same transaction, and whoever takes it out of that
//!   state deletes it. Where both wait for each other's row lock the second may not see the first one's row and leave it
//!   there, so readers ask the job's row too, and [`Store::forget_left`] deletes it in the end.
//! - A claim inserts what it took into `handouts` as one row. That row goes when none of its jobs runs any more, which
//!   [`Store::forget_handouts`] finds out later; until then readers ask the jobs themselves.

use sqlx::AssertSqlSafe;

use super::{Error, Store};
use crate::ids::JobId;

/// SQL: the gate at which a job with these columns of `jobs` waits when it must, as [`crate::queue::Gate`] names it; of several
/// the first. Null for a job that waits for nothing but a slot, and what operators limit as a whole.
pub(super) const GATE: &str = "case
    when concurrency_key is not null
        then 'c:' || substr(encode(sha256(uuid_send(tenant_id) || convert_to(concurrency_key, 'UTF8')), 'hex'), 1, 32)
    when rate_key is not null
        then 'x:' || substr(encode(sha256(uuid_send(tenant_id) || convert_to(rate_key, 'UTF8')), 'hex'), 1, 32)
    when agent_id is not null then 'a:' || agent_id
    when conversation_id is not null then 'v:' || conversation_id end";

/// SQL: inserts into `queued_jobs` the rows of the common table expression `from` that are queued.
pub(super) fn enter(from: &str) -> String {
    format!(
        "insert into queued_jobs (tenant_id, queue, class, priority, id, gate)
         select tenant_id, queue, class, priority, id, {GATE} from {from} where state = 'queued' on conflict do nothing"
    )
}

/// SQL: deletes from `queued_jobs` the jobs of the common table expression `from`, queued or not. Each is looked up by its
/// key, whatever the planner believes of the table's size: where it believes that it is nearly empty, it would compare each
/// of its rows with each of `from`.
pub(super) fn leave(from: &str) -> String {
    format!(
        "delete from queued_jobs where ctid = any(array(
            select left_behind.ctid from {from} c cross join lateral (
                select q.ctid from queued_jobs q where q.tenant_id = c.tenant_id and q.queue = c.queue
                    and q.class = c.class and q.priority = c.priority and q.id = c.id limit 1
            ) as left_behind))"
    )
}

/// SQL: whether the worker of the expression `worker` runs anything.
pub(super) fn runs_anything(worker: &str) -> String {
    format!(
        "exists (select from handouts h, unnest(h.job_ids) as held(id), jobs
            where h.worker_id = {worker} and jobs.id = held.id and jobs.state = 'running' and jobs.worker_id = h.worker_id)"
    )
}

impl Store {
    /// Deletes those of these rows of `queued_jobs` whose jobs have ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn forget_left(&self, ids: &[JobId]) -> Result<u64, Error> {
        if ids.is_empty() {
            return Ok(0);
        }
        // Only what can never be queued again: then nobody inserts the row that this deletes.
        let sql = format!(
            "with ended as (
                select tenant_id, queue, class, priority, id from jobs where id = any($1) and finished_at is not null
             ) {}",
            leave("ended")
        );
        let done = sqlx::query(AssertSqlSafe(sql)).bind(ids).execute(self.pool()).await?;
        Ok(done.rows_affected())
    }

    /// Forgets up to `limit` handouts of which no job runs any more; answers how many.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn forget_handouts(&self, limit: u32) -> Result<u64, Error> {
        self.within(async {
            let done = sqlx::query(
                "delete from handouts where id in
                    (select id from handouts h where not exists (
                        select from unnest(h.job_ids) as held(id), jobs
                        where jobs.id = held.id and jobs.state = 'running' and jobs.worker_id = h.worker_id)
                     order by id limit $1)",
            )
            .bind(i64::from(limit))
            .execute(self.pool())
            .await?;
            Ok(done.rows_affected())
        })
        .await
    }
}
