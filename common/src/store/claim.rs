//! Confirming claims: Redis says who may try, this update says who does.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::row::{self, int};
use super::{Error, Store, days, index};
use crate::ids::{JobId, WorkerId};
use crate::job::Job;

/// A claim as the queue handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job_id: JobId,
    /// The attempt that this claim would be.
    pub attempt: u32,
    /// Whether it is a turn of a conversation, of which one may run at a time.
    pub is_turn: bool,
}

/// A job whose attempt is the caller's now.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The job, running.
    pub job: Job,
    /// JSON of its input.
    pub input: Vec<u8>,
}

impl Store {
    /// Takes the attempts that are still free, in one transaction. What is missing from the answer was cancelled, or
    /// taken by somebody else, or is a turn whose conversation is busy.
    ///
    /// The claim takes the number after `seq` for its `started` event.
    ///
    /// # Errors
    /// When Postgres is away: then nothing was taken.
    pub async fn claim(
        &self,
        worker_id: WorkerId,
        claims: &[Claim],
        now: DateTime<Utc>,
    ) -> Result<Vec<Claimed>, Error> {
        self.within(async {
            let table = &self.days().table(self, claims.iter().map(|claim| claim.job_id)).await?;
            if claims.iter().any(|claim| claim.is_turn) {
                let mut tx = self.pool().begin_planned().await?;
                let free = take_turns(&mut tx, claims).await?;
                // What follows names its jobs, and so its partitions.
                sqlx::query("set local plan_cache_mode = force_custom_plan")
                    .execute(&mut *tx)
                    .await?;
                let claimed = take(&mut tx, table, worker_id, &free, now).await?;
                tx.commit().await?;
                return Ok(claimed);
            }
            let mut lent = self.moving().lend().await?;
            let claimed = take(&mut lent.connection, table, worker_id, claims, now).await;
            lent.done(claimed)
        })
        .await
    }
}

/// Leaves out the turns whose conversation runs another, or has an older one open.
async fn take_turns(connection: &mut PgConnection, claims: &[Claim]) -> Result<Vec<Claim>, Error> {
    let turns: Vec<Uuid> = claims
        .iter()
        .filter(|claim| claim.is_turn)
        .map(|claim| claim.job_id.uuid())
        .collect();
    let free: Vec<JobId> = sqlx::query_scalar(
        "update conversations c set active_job_id = j.id
         from jobs j
         where j.id = any($1) and c.id = j.conversation_id and (c.active_job_id is null or c.active_job_id = j.id)
           and not exists (select from jobs older where older.conversation_id = c.id and older.id < j.id
                and older.state not in ('succeeded', 'failed', 'cancelled'))
         returning j.id",
    )
    .bind(&turns)
    .fetch_all(connection)
    .await?;
    Ok(claims
        .iter()
        .copied()
        .filter(|claim| !claim.is_turn || free.contains(&claim.job_id))
        .collect())
}

async fn take(
    connection: &mut PgConnection,
    table: &str,
    worker_id: WorkerId,
    claims: &[Claim],
    now: DateTime<Utc>,
) -> Result<Vec<Claimed>, Error> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = claims.iter().map(|claim| claim.job_id.uuid()).collect();
    let attempts: Vec<i32> = claims.iter().map(|claim| int(claim.attempt)).collect();
    let sql = format!(
        "with c as materialized (
            -- Beside a constant state the planner expects hardly any row, and compares each id with each.
            select id, attempt, 'queued'::text as state from unnest($1::uuid[], $2::integer[]) as c(id, attempt)
         ), changed as (
            update {table} as jobs
            set state = 'running', attempt = c.attempt, worker_id = $3, started_at = $4, seq = jobs.seq + 1
            from c
            where jobs.id = c.id and jobs.state = c.state and jobs.attempt = c.attempt - 1
                and jobs.cancel_requested_at is null{prune}
            returning {columns}, jobs.input
         ), left_queue as (
            {leave}
         ), handed as (
            insert into handouts (id, worker_id, claimed_at, job_ids)
            select $5, $3, $4, array_agg(id) from changed having count(*) > 0
         )
         select * from changed",
        columns = row::qualified(),
        leave = index::leave("changed"),
        prune = days::prune(table, "$1"),
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(&ids)
        .bind(&attempts)
        .bind(worker_id)
        .bind(now)
        .bind(Uuid::now_v7())
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Claimed {
                job: row::job(row)?,
                input: row.try_get("input")?,
            })
        })
        .collect()
}
