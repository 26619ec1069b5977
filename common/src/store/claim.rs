//! Confirming claims: Redis says who may try, this update says who does.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::days::Table;
use super::row::{self, int};
use super::{Error, Store, index};
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
            let once = async || {
                let mut lent = self.moving(table).lend().await?;
                let claimed = take(&mut lent.connection, table, worker_id, claims, now).await;
                lent.done(claimed)
            };
            match once().await {
                Err(error) if error.is_deadlock() => once().await,
                claimed => claimed,
            }
        })
        .await
    }
}

/// SQL: the turns whose conversation runs no other and has no older one open, a condition that leaves out all other turns,
/// and that theirs are under way now, but only if they were taken: one that was cancelled meanwhile must not hold its
/// conversation. Conversations are locked before jobs, and in the order of their ids, so that no two claims wait for each other.
const TURNS: (&str, &str, &str) = (
    ", free as materialized (
        select j.id, v.id as conversation_id from c join jobs j on j.id = c.id join conversations v on v.id = j.conversation_id
        where c.is_turn and (v.active_job_id is null or v.active_job_id = j.id)
            and not exists (select from jobs older where older.conversation_id = v.id and older.id < j.id
                and older.state not in ('succeeded', 'failed', 'cancelled'))
        order by v.id for update of v
     )",
    " and (not c.is_turn or c.id in (select id from free))",
    ", begun as (
        update conversations v set active_job_id = changed.id from changed join free on free.id = changed.id
        where v.id = free.conversation_id
     )",
);

async fn take(
    connection: &mut PgConnection,
    table: &Table,
    worker_id: WorkerId,
    claims: &[Claim],
    now: DateTime<Utc>,
) -> Result<Vec<Claimed>, Error> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = claims.iter().map(|claim| claim.job_id.uuid()).collect();
    let attempts: Vec<i32> = claims.iter().map(|claim| int(claim.attempt)).collect();
    let turns: Vec<bool> = claims.iter().map(|claim| claim.is_turn).collect();
    let (free, is_free, begun) = if turns.contains(&true) {
        TURNS
    } else {
        Default::default()
    };
    let sql = format!(
        "with c as materialized (
            -- Beside a constant state the planner expects hardly any row, and compares each id with each.
            select id, attempt, is_turn, 'queued'::text as state
            from unnest($1::uuid[], $2::integer[], $6::boolean[]) as c(id, attempt, is_turn)
         ){free}, changed as (
            update {table} as jobs
            set state = 'running', attempt = c.attempt, worker_id = $3, started_at = $4, seq = jobs.seq + 1
            from c
            where jobs.id = c.id and jobs.state = c.state and jobs.attempt = c.attempt - 1
                and jobs.cancel_requested_at is null{is_free}{prune}
            returning {columns}, jobs.input
         ), left_queue as (
            {leave}
         ), handed as (
            insert into handouts (id, worker_id, claimed_at, job_ids)
            select $5, $3, $4, array_agg(id) from changed having count(*) > 0
         ){begun}
         select * from changed",
        columns = row::qualified(),
        leave = index::leave("changed"),
        prune = table.prune("$1"),
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(&ids)
        .bind(&attempts)
        .bind(worker_id)
        .bind(now)
        .bind(Uuid::now_v7())
        .bind(&turns)
        .fetch_all(connection)
        .await?;
    // They are taken: what this version cannot read must not cost the others an attempt.
    let claimed = |row| {
        let job = row::job(row).inspect_err(|error| tracing::error!(%error, "a claimed job is unread"));
        Some(Claimed {
            job: job.ok()?,
            input: row.try_get("input").ok()?,
        })
    };
    Ok(rows.iter().filter_map(claimed).collect())
}
