//! What was committed a moment ago, and Redis may not have heard of.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::{AssertSqlSafe, FromRow as _, Postgres, Row};

use super::backlog::Queued;
use super::row::int;
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::decision::ALONE_AFTER;
use crate::job::spec::LEVEL_HEAD_START;

/// Rows that somebody may have failed to tell Redis of.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// Queued jobs between two ids, in order of id.
    pub queued: Vec<Queued>,
    /// Jobs that were queued again, by a retry, a wait that ended, a drained or a lost worker: their ids tell nothing of it.
    pub again: Vec<Queued>,
    /// Open jobs that somebody asked to stop.
    pub cancelling: Vec<(TenantId, JobId)>,
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

impl Store {
    /// Jobs between two ids that are queued, those that were queued again after `again_since`, and open ones that were asked
    /// to stop before `cancelled_before`: of each kind at most `limit`. One statement, for it is asked all the time. Of the
    /// first kind those are not named that are `left` in Postgres: they may be all of a flood.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn recent(
        &self,
        (after, until): (JobId, JobId),
        again_since: DateTime<Utc>,
        cancelled_before: DateTime<Utc>,
        (left, limit): (&[Left], u32),
    ) -> Result<Recent, Error> {
        let sql = format!(
            "(select 1 as kind, id, tenant_id, queued_at as at from jobs
              where id > $7 and id < $8 and state = 'queued' and {NOT_LEFT} order by id limit $9)
             union all
             (select 2, id, tenant_id, queued_at from jobs
              where queued_at <> created_at and queued_at > $10 and state = 'queued' order by queued_at limit $9)
             union all
             (select 3, id, tenant_id, stopping_since from jobs
              where stopping_since < $11 order by stopping_since limit $9)"
        );
        let lanes = Lanes::new(left);
        let query = between(sql, &lanes, (after, until), limit)
            .bind(again_since)
            .bind(cancelled_before);
        let rows = self.on(self.looking(), async |connection| query.fetch_all(connection).await);
        let mut recent = Recent::default();
        for row in &rows.await? {
            let (id, tenant_id) = (row.try_get("id")?, row.try_get("tenant_id")?);
            let queued = |queued_at| Queued {
                id,
                tenant_id,
                queued_at,
            };
            match row.try_get("kind")? {
                1 => recent.queued.push(queued(row.try_get("at")?)),
                2 => recent.again.push(queued(row.try_get("at")?)),
                _ => recent.cancelling.push((tenant_id, id)),
            }
        }
        Ok(recent)
    }

    /// The next of the first kind of [`Self::recent`]. Few rows lie between two ids, so it goes by the primary key whatever the
    /// number of queued rows.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_between(
        &self,
        (after, until): (JobId, JobId),
        (left, limit): (&[Left], u32),
    ) -> Result<Vec<Queued>, Error> {
        let sql = format!(
            "select id, tenant_id, queued_at from jobs
             where id > $7 and id < $8 and state = 'queued' and {NOT_LEFT} order by id limit $9"
        );
        let lanes = Lanes::new(left);
        let query = between(sql, &lanes, (after, until), limit);
        let rows = self.on(self.looking(), async |connection| query.fetch_all(connection).await);
        rows.await?.iter().map(|row| Ok(Queued::from_row(row)?)).collect()
    }
}

type Asked<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A statement of what is queued and not left: its first nine values.
fn between<'q>(sql: String, lanes: &'q Lanes<'_>, (after, until): (JobId, JobId), limit: u32) -> Asked<'q> {
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
