//! What was committed a moment ago, and Redis may not have heard of.

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, Postgres, Row};

use super::backlog::Queued;
use super::row::int;
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::decision::ALONE_AFTER;
use crate::job::spec::LEVEL_HEAD_START;

/// Rows that somebody may have failed to tell Redis of.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// The first rows between two ids.
    pub rows: Rows,
    /// Jobs that were queued again, by a retry, a wait that ended, a drained or a lost worker: their ids tell nothing of it. Not
    /// those that are left in Postgres.
    pub again: Vec<Queued>,
    /// Open jobs that somebody asked to stop.
    pub cancelling: Vec<(TenantId, JobId)>,
}

/// A page of the rows between two ids.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Those that are queued, in no order.
    pub queued: Vec<Queued>,
    /// The last row that was read, whatever it is, where there may be more after it.
    pub last: Option<JobId>,
}

/// Jobs of a tenant's queue and class that are known to be in Postgres alone, until there is room for them: those that come
/// after `from` in the order of their backlog.
#[derive(Clone, Debug)]
pub struct Left {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The queue.
    pub queue: String,
    /// The class.
    pub class: String,
    /// The time of the last job of the backlog, its level's head start taken off.
    pub from: DateTime<Utc>,
}

/// The arrays of the condition [`NOT_LEFT`].
struct Lanes<'a> {
    tenants: Vec<TenantId>,
    queues: Vec<&'a str>,
    classes: Vec<&'a str>,
    from: Vec<DateTime<Utc>>,
}

impl<'a> Lanes<'a> {
    fn new(left: &'a [Left]) -> Self {
        Self {
            tenants: left.iter().map(|lane| lane.tenant_id).collect(),
            queues: left.iter().map(|lane| lane.queue.as_str()).collect(),
            classes: left.iter().map(|lane| lane.class.as_str()).collect(),
            from: left.iter().map(|lane| lane.from).collect(),
        }
    }
}

/// SQL: whether a row of `jobs` is none that is left in Postgres. $1 to $4 are [`Lanes`], $5 is the head start of a level, $6
/// the number of losses from which a job has a lane of its own.
const NOT_LEFT: &str = "not exists (
        select from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) as l(tenant_id, queue, class, since)
        where l.tenant_id = jobs.tenant_id and l.queue = jobs.queue and l.class = jobs.class and jobs.losses < $6
            and jobs.created_at - jobs.priority * $5::interval > l.since)";

/// SQL: the rows between $7 and $8 that come first, $9 of them; the last one where there are as many, as kind 0; and those that
/// are queued and not left, as kind 1. So many rows are read in the order of their ids, whatever they are: with the condition
/// inside, the list of what is left is hashed, all rows of a flood are read and sorted for each page, and that for minutes.
fn page(besides: &str, more: &str) -> String {
    format!(
        "with page as materialized (
            select id, tenant_id, queue, class, priority, losses, state, created_at, queued_at from jobs
            where id > $7 and id < $8 order by id limit $9
         ) {besides}
         (select 0 as kind, id, tenant_id, queued_at as at from page offset $9 - 1)
         union all
         select 1, id, tenant_id, queued_at from page as jobs where state = 'queued' and {NOT_LEFT} {more}"
    )
}

impl Store {
    /// The first rows between two ids, as [`Self::rows_between`]; jobs that were queued again after `again_since`, and open ones
    /// that were asked to stop before `cancelled_before`: of each kind at most `limit`. One statement, for it is asked all the
    /// time.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn recent(
        &self,
        between: (JobId, JobId),
        again_since: DateTime<Utc>,
        cancelled_before: DateTime<Utc>,
        (left, limit): (&[Left], u32),
    ) -> Result<Recent, Error> {
        let sql = page(
            ", again as materialized (
                select id, tenant_id, queue, class, priority, losses, created_at, queued_at from jobs
                where queued_at <> created_at and queued_at > $10 and state = 'queued' order by queued_at limit $9
             )",
            &format!(
                "union all
                 select 2, id, tenant_id, queued_at from again as jobs where {NOT_LEFT}
                 union all
                 (select 3, id, tenant_id, stopping_since from jobs
                  where stopping_since < $11 order by stopping_since limit $9)"
            ),
        );
        let lanes = Lanes::new(left);
        let query = asked(sql, &lanes, between, limit)
            .bind(again_since)
            .bind(cancelled_before);
        let rows = self.on(self.looking(), async |connection| query.fetch_all(connection).await);
        read(&rows.await?)
    }

    /// The first `limit` rows between two ids. Of those that are queued they are not named that are `left` in Postgres: they may
    /// be all of a flood.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn rows_between(&self, between: (JobId, JobId), (left, limit): (&[Left], u32)) -> Result<Rows, Error> {
        let lanes = Lanes::new(left);
        let query = asked(page("", ""), &lanes, between, limit);
        let rows = self.on(self.looking(), async |connection| query.fetch_all(connection).await);
        Ok(read(&rows.await?)?.rows)
    }
}

type Asked<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A statement that begins with a [`page`]: its first nine values.
fn asked<'q>(sql: String, lanes: &'q Lanes<'_>, (after, until): (JobId, JobId), limit: u32) -> Asked<'q> {
    sqlx::query(AssertSqlSafe(sql))
        .bind(&lanes.tenants)
        .bind(&lanes.queues)
        .bind(&lanes.classes)
        .bind(&lanes.from)
        .bind(LEVEL_HEAD_START)
        .bind(int(ALONE_AFTER))
        .bind(after)
        .bind(until)
        .bind(i64::from(limit))
}

fn read(rows: &[PgRow]) -> Result<Recent, Error> {
    let mut recent = Recent::default();
    for row in rows {
        let (id, tenant_id) = (row.try_get("id")?, row.try_get("tenant_id")?);
        let queued = |queued_at| Queued {
            id,
            tenant_id,
            queued_at,
        };
        match row.try_get("kind")? {
            0 => recent.rows.last = Some(id),
            1 => recent.rows.queued.push(queued(row.try_get("at")?)),
            2 => recent.again.push(queued(row.try_get("at")?)),
            _ => recent.cancelling.push((tenant_id, id)),
        }
    }
    Ok(recent)
}
