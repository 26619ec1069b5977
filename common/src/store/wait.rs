//! Waiting jobs: what wakes them, what their children became, and the end of children whose parent has ended.
//!
//! # Invariants
//! - A child's end and its parent's wake are one transaction. Whoever ends a child locks the parent afterwards and then
//!   looks, in a statement of its own, for children that are open; so of two that end at once, one sees the other.
//! - A settlement that waits looks in the same way after its own row is written: what ended before that wakes it at once.
//! - Rows are locked child first, then parent, parents in order of id. Where two transactions still wait for each
//!   other, Postgres ends one, which is repeated.

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::row::{self, bigint, qualified};
use super::{Error, Store, index};
use crate::ids::{JobId, TenantId};
use crate::job::group::Member;
use crate::job::{Failure, FailureCode, Job, StateName, Woken};

/// A parent that has ended, and whose children may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphaned {
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The parent.
    pub parent_id: JobId,
}

/// Wakes those of `parents` whose wait for children is over, and answers them. Call it after the children's rows, or
/// the parents' own, are written in this transaction.
pub(super) async fn wake(tx: &mut PgConnection, parents: &[JobId], now: DateTime<Utc>) -> Result<Vec<Job>, Error> {
    if parents.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query("select 1 from jobs where id = any($1) and finished_at is null order by id for no key update")
        .bind(parents)
        .execute(&mut *tx)
        .await?;
    // A child's id is above its parent's, so days before the parent's are not searched.
    let over = "waits_for ->> 'on' = 'children' and (
            not exists (select from jobs c where c.parent_id = jobs.id and c.id > jobs.id
                and c.state in ('scheduled', 'queued', 'running', 'waiting', 'retrying'))
            or (waits_for ->> 'until' = 'first_failure' and exists (select from jobs c
                where c.parent_id = jobs.id and c.id > jobs.id and c.state in ('failed', 'cancelled'))))";
    write(tx, parents, over, Woken::Children, now).await
}

/// Queues a waiting job whose last question was answered in this transaction, and answers it as it is then.
pub(super) async fn answered(tx: &mut PgConnection, job_id: JobId, now: DateTime<Utc>) -> Result<Job, Error> {
    let over = "waits_for ->> 'on' = 'answer' and not exists (select from approvals a
        where a.job_id = jobs.id and a.state = 'open')";
    if let Some(job) = write(tx, &[job_id], over, Woken::Answer, now).await?.into_iter().next() {
        return Ok(job);
    }
    let sql = format!("select {} from jobs where id = $1", row::COLUMNS);
    let row = sqlx::query(AssertSqlSafe(sql)).bind(job_id).fetch_one(tx).await?;
    row::job(&row)
}

/// Queues those of the waiting jobs for which `condition` holds, and writes their `queued` event.
async fn write(
    tx: &mut PgConnection,
    ids: &[JobId],
    condition: &str,
    by: Woken,
    now: DateTime<Utc>,
) -> Result<Vec<Job>, Error> {
    let sql = format!(
        "with woken as (
            update jobs set state = 'queued', queued_at = $2, due_at = null, woken_by = $3, seq = seq + 1
            where id = any($1) and state = 'waiting' and {condition}
            returning {columns}
         ), written as (
            insert into job_events (job_id, first_seq, last_seq, data)
            select id, seq, seq, convert_to(json_build_object(
                'seq', seq, 'at', queued_at, 'attempt', attempt, 'type', 'queued')::text, 'UTF8')
            from woken
         ), queued as ({enter})
         select * from woken",
        columns = qualified(),
        enter = index::enter("woken"),
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(ids)
        .bind(now)
        .bind(by.as_str())
        .fetch_all(tx)
        .await?;
    rows.iter().map(row::job).collect()
}

impl Store {
    /// Brings a job the answer that it waits for: it is queued. `None` when it does not wait for one any more. A question
    /// must become visible in the transaction that lets its job wait, or an answer could come too early.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn resume(&self, tenant_id: TenantId, id: JobId, now: DateTime<Utc>) -> Result<Option<Job>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let found: Option<JobId> = sqlx::query_scalar(
                "select id from jobs where id = $1 and tenant_id = $2 and state = 'waiting' for update",
            )
            .bind(id)
            .bind(tenant_id)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(found) = found else { return Ok(None) };
            let woken = write(&mut tx, &[found], "waits_for ->> 'on' = 'answer'", Woken::Answer, now).await?;
            tx.commit().await?;
            Ok(woken.into_iter().next())
        })
        .await
    }

    /// What became of a job's children, in the order in which they were submitted. Results are left out from where all
    /// of them together are longer than `results_max` bytes.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn children(
        &self,
        tenant_id: TenantId,
        parent_id: JobId,
        results_max: u64,
    ) -> Result<Vec<Member>, Error> {
        self.within(async {
            let rows = sqlx::query(
                "select id, created_at, state, error_code, error_message, result is not null as has_result,
                    case when sum(coalesce(length(result), 0)) over (order by id) <= $3 then result end as result
                 from jobs where parent_id = $1 and tenant_id = $2 and id > $1 order by id",
            )
            .bind(parent_id)
            .bind(tenant_id)
            .bind(bigint(results_max))
            .fetch_all(self.pool())
            .await?;
            rows.iter().map(member).collect()
        })
        .await
    }

    /// How many children a job has, and how many of them have not ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn count_children(&self, parent_id: JobId) -> Result<(u64, u64), Error> {
        let (all, open): (i64, i64) = sqlx::query_as(
            "select count(*), count(*) filter (where finished_at is null) from jobs where parent_id = $1 and id > $1",
        )
        .bind(parent_id)
        .fetch_one(self.pool())
        .await?;
        Ok((u64::try_from(all).unwrap_or(0), u64::try_from(open).unwrap_or(0)))
    }

    /// Up to `limit` jobs that have waited and have ended: their children may be open.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn orphaned(&self, limit: u32) -> Result<Vec<Orphaned>, Error> {
        self.within(async {
            let rows: Vec<(TenantId, JobId)> =
                sqlx::query_as("select tenant_id, id from jobs where leaves_children order by id limit $1")
                    .bind(i64::from(limit))
                    .fetch_all(self.pool())
                    .await?;
            let orphaned = |(tenant_id, parent_id)| Orphaned { tenant_id, parent_id };
            Ok(rows.into_iter().map(orphaned).collect())
        })
        .await
    }

    /// Notes that all children of a job that has ended were asked to stop, if they were.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn close_orphaned(&self, parent_id: JobId) -> Result<(), Error> {
        sqlx::query(
            "update jobs set waits_for = null where id = $1 and finished_at is not null
                and not exists (select from jobs c where c.parent_id = $1 and c.id > $1 and c.cancel_requested_at is null
                    and c.state in ('scheduled', 'queued', 'running', 'waiting', 'retrying'))",
        )
            .bind(parent_id)
            .execute(self.pool())
            .await?;
        Ok(())
    }
}

fn member(row: &sqlx::postgres::PgRow) -> Result<Member, Error> {
    let state: &str = row.try_get("state")?;
    let state = StateName::parse(state).ok_or_else(|| Error::Corrupt(format!("unknown state {state}")))?;
    let result: Option<Vec<u8>> = row.try_get("result")?;
    let has_result: bool = row.try_get("has_result")?;
    let code: Option<&str> = row.try_get("error_code")?;
    let message: Option<String> = row.try_get("error_message")?;
    let error = code
        .and_then(FailureCode::parse)
        .map(|code| Failure::new(code, message.unwrap_or_default()));
    Ok(Member {
        id: row.try_get("id")?,
        created_at: row.try_get("created_at")?,
        state,
        result_omitted: has_result && result.is_none(),
        result: result
            .and_then(|json| String::from_utf8(json).ok())
            .and_then(|json| RawValue::from_string(json).ok()),
        error,
    })
}
