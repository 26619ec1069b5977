//! Backlogs: what is queued in Postgres, whether Redis knows it or has no room for it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::recent::Left;
use super::row::{self, BRIEF};
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::Brief;
use crate::job::spec::LEVEL_HEAD_START;

/// A queued job, as far as it must be known to see whether Redis knows it.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
#[expect(clippy::struct_field_names, reason = "the column is called queued_at everywhere")]
pub struct Queued {
    /// The job.
    pub id: JobId,
    /// Decides the shard.
    pub tenant_id: TenantId,
    /// When it last became queued.
    pub queued_at: DateTime<Utc>,
}

/// A place in the order of all queued jobs.
#[derive(Clone, Debug)]
pub struct Place {
    tenant_id: TenantId,
    queue: String,
    class: String,
    priority: i16,
    id: JobId,
}

/// A page of them.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The jobs, with a few that are not queued any more and whose place was left behind.
    pub jobs: Vec<(TenantId, JobId)>,
    /// Where the next page begins; none after the last.
    pub next: Option<Place>,
}

impl Place {
    /// Before all of them.
    pub fn first() -> Self {
        Self {
            tenant_id: TenantId(Uuid::nil()),
            queue: String::new(),
            class: String::new(),
            priority: 0,
            id: JobId(Uuid::nil()),
        }
    }

    fn from_row(row: &PgRow) -> Result<Self, Error> {
        Ok(Self {
            tenant_id: row.try_get("tenant_id")?,
            queue: row.try_get("queue")?,
            class: row.try_get("class")?,
            priority: row.try_get("priority")?,
            id: row.try_get("id")?,
        })
    }

    /// After all of its level.
    fn end_of_level(self) -> Self {
        Self {
            id: JobId(Uuid::max()),
            ..self
        }
    }
}

/// Where in each backlog begins what is left in Postgres, ms.
struct Ends<'a>(HashMap<(TenantId, &'a str, &'a str), i64>);

impl<'a> Ends<'a> {
    fn new(left: &'a [Left]) -> Self {
        let end = |lane: &'a Left| {
            let key = (lane.tenant_id, lane.queue.as_str(), lane.class.as_str());
            (key, lane.from.timestamp_millis())
        };
        Self(left.iter().map(end).collect())
    }

    fn is_left(&self, place: &Place) -> bool {
        let end = self
            .0
            .get(&(place.tenant_id, place.queue.as_str(), place.class.as_str()));
        end.is_some_and(|end| order(place.id, place.priority.into()) > *end)
    }
}

impl Store {
    /// Whether some queued job may need a place before it runs: it names a gate, or operators limit tenants or queues.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn is_place_wanted(&self) -> Result<bool, Error> {
        self.within(async {
            let sql = "select exists (select from queued_jobs where gate is not null)
                or exists (select from queued_jobs)
                    and (exists (select from tenants where max_running is not null)
                        or exists (select from queues where max_running is not null))";
            Ok(sqlx::query_scalar(sql).fetch_one(self.pool()).await?)
        })
        .await
    }

    /// Queued jobs after a place in the order of their tenants, queues, classes and levels, and where to go on, if there are
    /// more: the cursor of redispatch. Those that are `left` in Postgres are not named, and of each level read only as far as
    /// the page goes. An index tells, and no job is read.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_after(&self, after: &Place, left: &[Left], limit: u32) -> Result<Page, Error> {
        let query = sqlx::query(
            "select tenant_id, queue, class, priority, id from queued_jobs
             where (tenant_id, queue, class, priority, id) > ($1, $2, $3, $4, $5)
             order by tenant_id, queue, class, priority, id limit $6",
        )
        .bind(after.tenant_id)
        .bind(&after.queue)
        .bind(&after.class)
        .bind(after.priority)
        .bind(after.id)
        .bind(i64::from(limit));
        let rows = self.on(self.looking(), async |connection| query.fetch_all(connection).await);
        let rows = rows.await?;
        let is_full = rows.len() == usize::try_from(limit).unwrap_or(usize::MAX);
        let (ends, mut page) = (Ends::new(left), Page::default());
        for row in &rows {
            let place = Place::from_row(row)?;
            let is_left = ends.is_left(&place);
            if !is_left {
                page.jobs.push((place.tenant_id, place.id));
            }
            page.next = Some(if is_left { place.end_of_level() } else { place });
        }
        page.next = page.next.filter(|_| is_full);
        Ok(page)
    }

    /// Of these jobs, whosever they are, those that are queued, in no order.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_of(&self, ids: &[JobId]) -> Result<Vec<Queued>, Error> {
        self.within(async {
            let table = self.days().table(self, ids.iter().copied()).await?;
            // The limit of one makes the planner look up each row by its key.
            let sql = format!(
                "select found.* from unnest($1::uuid[]) as wanted(id) cross join lateral (
                    select id, tenant_id, queued_at from {table} as jobs
                    where jobs.id = wanted.id and jobs.state = 'queued' limit 1
                 ) as found"
            );
            let found = sqlx::query_as(AssertSqlSafe(sql)).bind(ids);
            Ok(found.fetch_all(self.pool()).await?)
        })
        .await
    }

    /// The queued jobs of one tenant, queue and class that come next, as the queue orders them: by age, each level a head start
    /// older. So what waits here of a low level starves no more than it does in Redis. One may have been claimed or
    /// cancelled since: [`Self::briefs`] leaves it out.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn next_queued(
        &self,
        tenant_id: TenantId,
        queue: &str,
        class: &str,
        limit: u32,
    ) -> Result<Vec<JobId>, Error> {
        self.next_past(tenant_id, (queue, class), &[], limit).await
    }

    /// The same without those that stand at one of these gates.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn next_past(
        &self,
        tenant_id: TenantId,
        lane: (&str, &str),
        gates: &[&str],
        limit: u32,
    ) -> Result<Vec<JobId>, Error> {
        let is_past = if gates.is_empty() {
            "true"
        } else {
            "(q.gate is null or q.gate <> all($5))"
        };
        self.next_where(tenant_id, lane, (is_past, gates), limit).await
    }

    /// Those of them alone that stand at this gate.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn next_at_gate(
        &self,
        tenant_id: TenantId,
        lane: (&str, &str),
        gate: &str,
        limit: u32,
    ) -> Result<Vec<JobId>, Error> {
        self.next_where(tenant_id, lane, ("q.gate = any($5)", &[gate]), limit)
            .await
    }

    async fn next_where(
        &self,
        tenant_id: TenantId,
        (queue, class): (&str, &str),
        (condition, gates): (&str, &[&str]),
        limit: u32,
    ) -> Result<Vec<JobId>, Error> {
        self.within(async {
            // A condition on gates is looked up in the table; without one the index alone answers, with the same parameters.
            let sql = format!(
                "select next.id, level from generate_series(0, 9) as level cross join lateral (
                    select q.id from queued_jobs q
                    where q.tenant_id = $1 and q.queue = $2 and q.class = $3 and q.priority = level and {condition}
                        and $5::text[] is not null
                    order by q.id limit $4
                 ) as next"
            );
            let rows = sqlx::query_as(AssertSqlSafe(sql))
                .bind(tenant_id)
                .bind(queue)
                .bind(class)
                .bind(i64::from(limit))
                .bind(gates)
                .fetch_all(self.pool())
                .await?;
            let mut ids = in_order(rows);
            ids.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            Ok(ids)
        })
        .await
    }

    /// Of these jobs, whosever they are, those that are queued, in no order.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn briefs(&self, ids: &[JobId]) -> Result<Vec<Brief>, Error> {
        self.within(async {
            let table = self.days().table(self, ids.iter().copied()).await?;
            let sql = format!(
                // The limit of one makes the planner look up each row by its key. Where it believes that many are queued, or that
                // there are few rows, it would read all of them instead.
                "select brief.* from unnest($1::uuid[]) as wanted(id) cross join lateral (
                    select {BRIEF} from {table} as jobs where jobs.id = wanted.id and jobs.state = 'queued' limit 1
                 ) as brief"
            );
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(ids).fetch_all(self.pool()).await?;
            rows.iter().map(row::brief).collect()
        })
        .await
    }

    /// The queues and classes in which a tenant has queued jobs, in their order after one of them; as many index look-ups,
    /// however many jobs there are.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_lanes_of(
        &self,
        tenant_id: TenantId,
        (queue, class): (&str, &str),
        limit: usize,
    ) -> Result<Vec<(String, String)>, Error> {
        self.within(async {
            let rows = sqlx::query_as(
                "with recursive lanes as (
                    (select queue, class from queued_jobs where tenant_id = $1 and (queue, class) > ($2, $3)
                     order by queue, class limit 1)
                    union all
                    select next.queue, next.class from lanes cross join lateral (
                        select q.queue, q.class from queued_jobs q
                        where q.tenant_id = $1 and (q.queue, q.class) > (lanes.queue, lanes.class)
                        order by q.queue, q.class limit 1
                    ) as next
                 ) select queue, class from lanes limit $4",
            )
            .bind(tenant_id)
            .bind(queue)
            .bind(class)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(self.pool())
            .await?;
            Ok(rows)
        })
        .await
    }

    /// The tenants, queues and classes that have queued jobs.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn queued_lanes(&self) -> Result<Vec<(TenantId, String, String)>, Error> {
        self.within(async {
            Ok(
                sqlx::query_as("select distinct tenant_id, queue, class from queued_jobs")
                    .fetch_all(self.pool())
                    .await?,
            )
        })
        .await
    }
}

/// Jobs and their levels, as the queue orders them: an id begins with the time of its job.
fn in_order(mut jobs: Vec<(JobId, i32)>) -> Vec<JobId> {
    jobs.sort_unstable_by_key(|(id, level)| (order(*id, *level), *id));
    jobs.into_iter().map(|(id, _)| id).collect()
}

fn order(id: JobId, level: i32) -> i64 {
    let head_start = i64::try_from(LEVEL_HEAD_START.as_millis()).unwrap_or(0);
    id.ms().saturating_sub(i64::from(level) * head_start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_worth_its_head_start() {
        let began = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let id = |levels_later: u32| JobId::first_of(began + LEVEL_HEAD_START * levels_later);
        let jobs = vec![(id(10), 9), (id(3), 0), (id(0), 0), (id(2), 1), (id(8), 9)];
        // The ninth level's begin at -1 and 1, the first's at 1: the same time goes by the id.
        assert_eq!(in_order(jobs), [id(8), id(0), id(2), id(10), id(3)]);
    }
}
