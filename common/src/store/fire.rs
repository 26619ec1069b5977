//! Firing: one transaction checks the leader, records each due time, inserts its job and moves the schedule on.
//!
//! # Invariants
//! - A due time is decided once: `fires` has the primary key (schedule, due time), and a job is inserted only where its
//!   row was.
//! - Only the leader fires: its epoch is checked in the transaction, and nobody takes over before it ends.
//! - Now is Postgres's clock, so a scheduler whose own clock jumps fires nothing too early or twice.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::insert::insert_jobs;
use super::leaders::{Leadership, confirm};
use super::row::bigint;
use super::schedules::{COLUMNS, schedule};
use super::{Class, Error, Store};
use crate::agent::{AgentDefinition, AgentStatus};
use crate::ids::{AgentId, JobId, ScheduleId, TenantId};
use crate::job::NewJob;
use crate::schedule::Schedule;
use crate::schedule::decide::{Agent, Context, Decision, Last, decide, new_job};

/// How schedules are fired.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most schedules in one transaction.
    pub schedules_max: u32,
    /// Due times that are not older than this are always fired.
    pub grace: Duration,
    /// Moves Postgres's clock, for tests that do not wait.
    pub clock_offset: TimeDelta,
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Fired {
    /// Jobs to dispatch: they are committed.
    pub jobs: Vec<NewJob>,
    /// Jobs to cancel; the schedules that wait for it are fired in the next round.
    pub to_cancel: Vec<(TenantId, JobId)>,
    /// Schedules that were moved on.
    pub schedules: u64,
    /// Schedules that cannot be fired and were paused.
    pub paused: u64,
    /// How long until the next schedule is due; `None` when none ever is.
    pub next_in: Option<Duration>,
}

/// What became of a fire that a person asked for.
#[derive(Debug)]
pub enum Manual {
    /// A job was made: dispatch it.
    Fired(Box<NewJob>),
    /// It cannot be fired.
    Refused(String),
    /// The tenant has no such schedule.
    NotFound,
}

impl Store {
    /// Fires what is due. A schedule that Postgres refuses is paused and never holds up the others.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when another leads; otherwise when Postgres is away.
    pub async fn fire_due(&self, leadership: &Leadership, limits: Limits) -> Result<Fired, Error> {
        let (now, next) = self.next_due(limits.clock_offset).await?;
        let wait = next.map(|next| (next - now).to_std().unwrap_or(Duration::ZERO));
        if wait.is_none_or(|wait| !wait.is_zero()) {
            return Ok(Fired {
                next_in: wait,
                ..Fired::default()
            });
        }
        let mut schedules_max = limits.schedules_max;
        loop {
            let mut seen = Vec::new();
            let round = Limits {
                schedules_max,
                ..limits
            };
            match self.fire_round(leadership, round, now, &mut seen).await {
                Err(error) if error.class() == Class::Data && seen.len() > 1 => {
                    schedules_max = schedules_max.div_ceil(2);
                }
                Err(error) if error.class() == Class::Data && seen.len() == 1 => {
                    let reason = format!("its job is refused: {error}");
                    let paused = self.pause_unfit(leadership, &[(seen[0], reason)]).await?;
                    return Ok(Fired {
                        paused,
                        next_in: Some(Duration::ZERO),
                        ..Fired::default()
                    });
                }
                ended => return ended,
            }
        }
    }

    /// Fires a schedule now because a person asked for it, whether or not it is enabled or its last job has ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn fire_now(&self, tenant_id: TenantId, id: ScheduleId) -> Result<Manual, Error> {
        let mut tx = self.pool().begin().await?;
        let sql = format!(
            "select {COLUMNS}, clock_timestamp() as now from schedules
             where id = $1 and tenant_id = $2 and deleted_at is null for update"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(tenant_id)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = row else { return Ok(Manual::NotFound) };
        let (found, now) = (schedule(&row)?, row.try_get("now")?);
        let agents = agents(&mut tx, std::slice::from_ref(&found)).await?;
        let agent = found.target.agent_id.and_then(|id| agents.get(&id));
        let job = match new_job(&found, agent, now) {
            Ok(job) => job,
            Err(reason) => return Ok(Manual::Refused(reason)),
        };
        let decision = Decision::manual(&found, job, now);
        let jobs = record(&mut tx, 0, now, std::slice::from_ref(&decision)).await?;
        insert_jobs(&mut tx, &jobs).await?;
        advance(&mut tx, std::slice::from_ref(&decision), &jobs).await?;
        let job = jobs.first().map(|job| Box::new((*job).clone()));
        tx.commit().await?;
        Ok(job.map_or_else(
            || Manual::Refused("it was fired at the same moment".to_owned()),
            Manual::Fired,
        ))
    }

    async fn next_due(&self, clock_offset: TimeDelta) -> Result<(DateTime<Utc>, Option<DateTime<Utc>>), Error> {
        let row = sqlx::query(
            "select clock_timestamp() + $1 * interval '1 microsecond' as now,
                (select due_at from schedules where enabled and deleted_at is null and due_at is not null
                 order by due_at limit 1) as next",
        )
        .bind(clock_offset.num_microseconds().unwrap_or(0))
        .fetch_one(self.pool())
        .await?;
        Ok((row.try_get("now")?, row.try_get("next")?))
    }

    async fn fire_round(
        &self,
        leadership: &Leadership,
        limits: Limits,
        now: DateTime<Utc>,
        seen: &mut Vec<ScheduleId>,
    ) -> Result<Fired, Error> {
        let mut tx = self.pool().begin().await?;
        confirm(&mut tx, leadership).await?;
        let (schedules, unfit) = due(&mut tx, now, limits.schedules_max, seen).await?;
        let last = last_jobs(&mut tx, &schedules).await?;
        let agents = agents(&mut tx, &schedules).await?;
        let decisions: Vec<Decision> = schedules
            .iter()
            .map(|schedule| {
                let last = schedule
                    .last_job_id
                    .and_then(|id| last.get(&id))
                    .copied()
                    .unwrap_or(Last::Ended);
                let agent = schedule.target.agent_id.and_then(|id| agents.get(&id));
                decide(
                    schedule,
                    &Context {
                        now,
                        grace: limits.grace,
                        last,
                        agent,
                    },
                )
            })
            .collect();
        let jobs = record(&mut tx, leadership.epoch, now, &decisions).await?;
        insert_jobs(&mut tx, &jobs).await?;
        advance(&mut tx, &decisions, &jobs).await?;
        let jobs = jobs.into_iter().cloned().collect();
        tx.commit().await?;
        let paused = if unfit.is_empty() {
            0
        } else {
            self.pause_unfit(leadership, &unfit).await?
        };
        let to_cancel = decisions.iter().filter_map(|decision| decision.cancel_first).collect();
        let schedules = u64::try_from(decisions.len()).unwrap_or(u64::MAX);
        Ok(Fired {
            jobs,
            to_cancel,
            schedules,
            paused,
            next_in: Some(Duration::ZERO),
        })
    }

    async fn pause_unfit(&self, leadership: &Leadership, unfit: &[(ScheduleId, String)]) -> Result<u64, Error> {
        let mut tx = self.pool().begin().await?;
        confirm(&mut tx, leadership).await?;
        let done = sqlx::query(
            "update schedules set enabled = false, paused_reason = u.reason, version = version + 1,
                updated_at = clock_timestamp()
             from unnest($1::uuid[], $2::text[]) as u(id, reason) where schedules.id = u.id",
        )
        .bind(unfit.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .bind(unfit.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

/// Locks the schedules that are due, and says which of them cannot be read.
async fn due(
    tx: &mut PgConnection,
    now: DateTime<Utc>,
    limit: u32,
    seen: &mut Vec<ScheduleId>,
) -> Result<(Vec<Schedule>, Vec<(ScheduleId, String)>), Error> {
    let sql = format!(
        "select {COLUMNS} from schedules where enabled and deleted_at is null and due_at is not null and due_at <= $1
         order by due_at limit $2 for update skip locked"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(now)
        .bind(i64::from(limit))
        .fetch_all(tx)
        .await?;
    let (mut fit, mut unfit) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in &rows {
        let id: ScheduleId = row.try_get("id")?;
        seen.push(id);
        match schedule(row) {
            Ok(schedule) => fit.push(schedule),
            Err(error) => unfit.push((id, format!("it cannot be read: {error}"))),
        }
    }
    Ok((fit, unfit))
}

/// How far the last jobs of some schedules are. A job that is gone has ended.
async fn last_jobs(tx: &mut PgConnection, schedules: &[Schedule]) -> Result<HashMap<JobId, Last>, Error> {
    let ids: Vec<JobId> = schedules.iter().filter_map(|schedule| schedule.last_job_id).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "select id, cancel_requested_at is not null as cancelled from jobs
         where id = any($1) and state not in ('succeeded', 'failed', 'cancelled')",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let last = if row.try_get("cancelled")? {
                Last::Cancelled
            } else {
                Last::Open
            };
            Ok((row.try_get("id")?, last))
        })
        .collect()
}

/// The agents that some schedules run, as they are now.
async fn agents(tx: &mut PgConnection, schedules: &[Schedule]) -> Result<HashMap<AgentId, Agent>, Error> {
    let ids: HashSet<AgentId> = schedules
        .iter()
        .filter_map(|schedule| schedule.target.agent_id)
        .collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows =
        sqlx::query("select id, tenant_id, version, definition from agents where id = any($1) and deleted_at is null")
            .bind(ids.into_iter().collect::<Vec<_>>())
            .fetch_all(tx)
            .await?;
    let mut agents = HashMap::with_capacity(rows.len());
    for row in rows {
        let id: AgentId = row.try_get("id")?;
        let definition: sqlx::types::Json<AgentDefinition> = row
            .try_get("definition")
            .map_err(|error| Error::Corrupt(format!("agent {id}: {error}")))?;
        if definition.status == AgentStatus::Active {
            let version = u32::try_from(row.try_get::<i32, _>("version")?).unwrap_or(0);
            agents.insert(
                id,
                Agent {
                    id,
                    tenant_id: row.try_get("tenant_id")?,
                    version,
                    definition: definition.0,
                },
            );
        }
    }
    Ok(agents)
}

/// Writes down what was decided; answers the jobs of those due times that nobody had decided before.
async fn record<'a>(
    tx: &mut PgConnection,
    epoch: u64,
    now: DateTime<Utc>,
    decisions: &'a [Decision],
) -> Result<Vec<&'a NewJob>, Error> {
    let fires: Vec<_> = decisions
        .iter()
        .flat_map(|one| one.fires.iter().map(move |fire| (one.schedule_id, fire)))
        .collect();
    if fires.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "insert into fires (schedule_id, fire_at, fired_at, epoch, job_id, outcome, reason, manual)
         select schedule_id, fire_at, $1, $2, job_id, outcome, reason, manual
         from unnest($3::uuid[], $4::timestamptz[], $5::uuid[], $6::text[], $7::text[], $8::boolean[])
            as t(schedule_id, fire_at, job_id, outcome, reason, manual)
         on conflict do nothing returning job_id",
    )
    .bind(now)
    .bind(bigint(epoch))
    .bind(fires.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.fire_at).collect::<Vec<_>>())
    .bind(
        fires
            .iter()
            .map(|(_, fire)| fire.job.as_ref().map(|job| job.id))
            .collect::<Vec<_>>(),
    )
    .bind(fires.iter().map(|(_, fire)| fire.outcome.as_str()).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.reason.as_deref()).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.manual).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let written: HashSet<Option<JobId>> = rows.iter().map(|row| row.try_get("job_id")).collect::<Result<_, _>>()?;
    let jobs = fires.into_iter().filter_map(|(_, fire)| fire.job.as_ref());
    Ok(jobs.filter(|job| written.contains(&Some(job.id))).collect())
}

/// Moves schedules on to their next due time. Only `jobs` were made: another due time may have been decided before.
async fn advance(tx: &mut PgConnection, decisions: &[Decision], jobs: &[&NewJob]) -> Result<(), Error> {
    let made: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
    let moved: Vec<&Decision> = decisions
        .iter()
        .filter(|decision| decision.cancel_first.is_none())
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update schedules set next_fire_at = t.next, due_at = t.due, last_fire_at = coalesce(t.fired, last_fire_at),
            last_job_id = coalesce(t.job, last_job_id), enabled = enabled and t.unfit is null,
            paused_reason = coalesce(t.unfit, paused_reason)
         from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::uuid[], $6::text[])
            as t(id, next, due, fired, job, unfit)
         where schedules.id = t.id",
    )
    .bind(moved.iter().map(|decision| decision.schedule_id).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| decision.next).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| decision.due_at).collect::<Vec<_>>())
    .bind(
        moved
            .iter()
            .map(|decision| decision.last_job(&made).map(|(fire_at, _)| fire_at))
            .collect::<Vec<_>>(),
    )
    .bind(
        moved
            .iter()
            .map(|decision| decision.last_job(&made).map(|(_, id)| id))
            .collect::<Vec<_>>(),
    )
    .bind(
        moved
            .iter()
            .map(|decision| decision.unfit.as_deref())
            .collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(())
}
