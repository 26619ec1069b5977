//! Saved schedules and what became of their due times. Firing is [`super::fire`].

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::row::{bigint, int, ms};
use super::{Error, Store};
use crate::cron::Cron;
use crate::ids::{JobId, ScheduleId, TenantId};
use crate::schedule::{Fire, Misfire, Outcome, Overlap, Schedule, Target, Timing};

/// The columns that [`schedule`] reads.
pub(super) const COLUMNS: &str = "id, tenant_id, name, cron, timezone, target, overlap, catch_up_ms, jitter_ms, \
     misfire, starts_at, ends_at, max_fires, enabled, paused_reason, next_fire_at, last_fire_at, last_job_id, \
     prior_job_id, fired, pause_after_failures, failures_in_row, version, created_at, updated_at";

const FIRE_COLUMNS: &str =
    "fire_at, fired_at, outcome, job_id, reason, manual, backfill, job_state, job_error, job_ended_at";

/// A job of a due time.
#[derive(Clone, Copy, Debug)]
pub struct FiredJob {
    /// The job.
    pub job_id: JobId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The due time.
    pub fire_at: DateTime<Utc>,
    /// When it was decided.
    pub fired_at: DateTime<Utc>,
}

impl Store {
    /// Saves a new schedule.
    ///
    /// # Errors
    /// When Postgres is away, or refuses the data.
    pub async fn create_schedule(&self, schedule: &Schedule) -> Result<(), Error> {
        self.create_schedules(std::slice::from_ref(schedule)).await
    }

    /// Saves new schedules, all or none.
    ///
    /// # Errors
    /// When Postgres is away, or refuses the data.
    pub async fn create_schedules(&self, schedules: &[Schedule]) -> Result<(), Error> {
        insert(&mut *self.pool().acquire().await?, schedules).await
    }

    /// Which of some ids stand for schedules of the tenant, and which for others that nobody may take.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn schedule_ids(
        &self,
        tenant_id: TenantId,
        ids: &[ScheduleId],
    ) -> Result<HashMap<ScheduleId, bool>, Error> {
        let rows: Vec<(ScheduleId, bool)> =
            sqlx::query_as("select id, tenant_id = $1 and deleted_at is null from schedules where id = any($2)")
                .bind(tenant_id)
                .bind(ids)
                .fetch_all(self.pool())
                .await?;
        Ok(rows.into_iter().collect())
    }

    /// Saves an edited schedule, if it still has `version`. Its due times are moved only when `reschedule` says so:
    /// the scheduler may have fired since it was read. Resuming it forgives the failures so far. Answers whether it was
    /// saved; then its version is one higher.
    ///
    /// # Errors
    /// When Postgres is away, or refuses the data.
    pub async fn update_schedule(&self, schedule: &Schedule, version: u64, reschedule: bool) -> Result<bool, Error> {
        let timing = &schedule.timing;
        let done = sqlx::query(
            "update schedules set name = $4, cron = $5, timezone = $6, target = $7, overlap = $8, catch_up_ms = $9,
                jitter_ms = $10, starts_at = $11, ends_at = $12, enabled = $13, paused_reason = $14, updated_at = $15,
                next_fire_at = case when $16 then $17 else next_fire_at end,
                due_at = case when $16 then $18 else due_at end, misfire = $19, max_fires = $20,
                pause_after_failures = $21, keeps_result = $22,
                failures_in_row = case when $13 and not enabled then 0 else failures_in_row end, version = version + 1
             where id = $1 and tenant_id = $2 and version = $3 and deleted_at is null",
        )
        .bind(schedule.id)
        .bind(schedule.tenant_id)
        .bind(bigint(version))
        .bind(&schedule.name)
        .bind(timing.cron.expression())
        .bind(timing.cron.zone())
        .bind(target(schedule)?)
        .bind(schedule.overlap.as_str())
        .bind(ms(timing.catch_up))
        .bind(ms(timing.jitter))
        .bind(timing.starts_at)
        .bind(timing.ends_at)
        .bind(schedule.enabled)
        .bind(&schedule.paused_reason)
        .bind(schedule.updated_at)
        .bind(reschedule)
        .bind(schedule.next_fire_at)
        .bind(schedule.next_fire_at.map(|at| at + schedule.delay()))
        .bind(timing.misfire.as_str())
        .bind(timing.max_fires.map(bigint))
        .bind(schedule.pause_after_failures.map(int))
        .bind(schedule.target.names_last_result())
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Deletes a schedule, if it still has `version` where one is given. Its fires and jobs stay. Answers whether there
    /// was such a schedule.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_schedule(
        &self,
        tenant_id: TenantId,
        id: ScheduleId,
        version: Option<u64>,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let done = sqlx::query(
            "update schedules set deleted_at = $4
             where id = $1 and tenant_id = $2 and ($3::bigint is null or version = $3) and deleted_at is null",
        )
        .bind(id)
        .bind(tenant_id)
        .bind(version.map(bigint))
        .bind(now)
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// A tenant's schedule and its last decided due time; `None` when there is none, or it is another tenant's.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn schedule(
        &self,
        tenant_id: TenantId,
        id: ScheduleId,
    ) -> Result<Option<(Schedule, Option<Fire>)>, Error> {
        Ok(self.select_schedules(tenant_id, Some(id), None, 1).await?.pop())
    }

    /// Up to `limit` schedules of a tenant that are older than `before`, newest first, each with its last decided due
    /// time.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn schedules(
        &self,
        tenant_id: TenantId,
        before: Option<ScheduleId>,
        limit: u32,
    ) -> Result<Vec<(Schedule, Option<Fire>)>, Error> {
        self.select_schedules(tenant_id, None, before, limit).await
    }

    async fn select_schedules(
        &self,
        tenant_id: TenantId,
        id: Option<ScheduleId>,
        before: Option<ScheduleId>,
        limit: u32,
    ) -> Result<Vec<(Schedule, Option<Fire>)>, Error> {
        let sql = format!(
            "select {COLUMNS}, last.* from schedules left join lateral
                (select {FIRE_COLUMNS} from fires where schedule_id = schedules.id order by fire_at desc limit 1) last
                on true
             where tenant_id = $1 and deleted_at is null and ($2::uuid is null or id = $2) and ($3::uuid is null or id < $3)
             order by id desc limit $4"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant_id)
            .bind(id)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter()
            .map(|row| {
                let decided: Option<DateTime<Utc>> = row.try_get("fire_at")?;
                Ok((schedule(row)?, decided.map(|_| fire(row)).transpose()?))
            })
            .collect()
    }

    /// Up to `limit` decided due times of a schedule before `before`, latest first, each with where its job is.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn fires(&self, id: ScheduleId, before: Option<DateTime<Utc>>, limit: u32) -> Result<Vec<Fire>, Error> {
        let sql = format!(
            "select {FIRE_COLUMNS} from fires where schedule_id = $1 and ($2::timestamptz is null or fire_at < $2)
             order by fire_at desc limit $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        let mut fires = rows.iter().map(fire).collect::<Result<Vec<_>, _>>()?;
        self.look_up_jobs(&mut fires).await?;
        Ok(fires)
    }

    /// How many due times made a job, for measurements.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn count_fired(&self) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar("select count(*) from fires where job_id is not null")
            .fetch_one(self.pool())
            .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Every due time that has a job in table `jobs`, for measurements.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn fired_jobs(&self) -> Result<Vec<FiredJob>, Error> {
        let rows = sqlx::query(
            "select jobs.id, jobs.tenant_id, fires.fire_at, fires.fired_at from fires join jobs on jobs.id = fires.job_id",
        )
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(FiredJob {
                    job_id: row.try_get("id")?,
                    tenant_id: row.try_get("tenant_id")?,
                    fire_at: row.try_get("fire_at")?,
                    fired_at: row.try_get("fired_at")?,
                })
            })
            .collect()
    }

    /// Where the jobs are whose ends are not written down yet.
    async fn look_up_jobs(&self, fires: &mut [Fire]) -> Result<(), Error> {
        let open = fires.iter().filter(|fire| fire.job_state.is_none());
        let ids: Vec<JobId> = open.filter_map(|fire| fire.job_id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let jobs = self.jobs(&ids).await?;
        for fire in fires.iter_mut().filter(|fire| fire.job_state.is_none()) {
            let Some(job) = jobs.iter().find(|job| Some(job.id) == fire.job_id) else {
                continue;
            };
            fire.job_state = Some(job.state.name().as_str().to_owned());
            fire.job_ended_at = job.finished_at;
            let error = job.error.as_ref().filter(|_| job.finished_at.is_some());
            fire.job_error = error.map(|error| error.code.as_str().to_owned());
        }
        Ok(())
    }
}

/// Inserts schedules on a connection, which may be in a transaction.
async fn insert(connection: &mut PgConnection, schedules: &[Schedule]) -> Result<(), Error> {
    let targets = schedules.iter().map(target).collect::<Result<Vec<_>, _>>()?;
    sqlx::query(
        "insert into schedules (id, tenant_id, name, cron, timezone, target, overlap, catch_up_ms, misfire, jitter_ms,
            starts_at, ends_at, max_fires, pause_after_failures, keeps_result, enabled, paused_reason, next_fire_at,
            due_at, version, created_at, updated_at)
         select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[],
            $8::bigint[], $9::text[], $10::bigint[], $11::timestamptz[], $12::timestamptz[], $13::bigint[],
            $14::integer[], $15::boolean[], $16::boolean[], $17::text[], $18::timestamptz[], $19::timestamptz[],
            $20::bigint[], $21::timestamptz[], $22::timestamptz[])",
    )
    .bind(column(schedules, |one| one.id))
    .bind(column(schedules, |one| one.tenant_id))
    .bind(column(schedules, |one| one.name.as_str()))
    .bind(column(schedules, |one| one.timing.cron.expression()))
    .bind(column(schedules, |one| one.timing.cron.zone()))
    .bind(targets)
    .bind(column(schedules, |one| one.overlap.as_str()))
    .bind(column(schedules, |one| ms(one.timing.catch_up)))
    .bind(column(schedules, |one| one.timing.misfire.as_str()))
    .bind(column(schedules, |one| ms(one.timing.jitter)))
    .bind(column(schedules, |one| one.timing.starts_at))
    .bind(column(schedules, |one| one.timing.ends_at))
    .bind(column(schedules, |one| one.timing.max_fires.map(bigint)))
    .bind(column(schedules, |one| one.pause_after_failures.map(int)))
    .bind(column(schedules, |one| one.target.names_last_result()))
    .bind(column(schedules, |one| one.enabled))
    .bind(column(schedules, |one| one.paused_reason.as_deref()))
    .bind(column(schedules, |one| one.next_fire_at))
    .bind(column(schedules, |one| one.next_fire_at.map(|at| at + one.delay())))
    .bind(column(schedules, |one| bigint(one.version)))
    .bind(column(schedules, |one| one.created_at))
    .bind(column(schedules, |one| one.updated_at))
    .execute(connection)
    .await?;
    Ok(())
}

/// One value of a column for each schedule.
fn column<'a, T>(schedules: &'a [Schedule], value: impl Fn(&'a Schedule) -> T) -> Vec<T> {
    schedules.iter().map(value).collect()
}

fn target(schedule: &Schedule) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&schedule.target).map_err(|error| Error::Corrupt(format!("a target cannot be written: {error}")))
}

/// A schedule from a row with [`COLUMNS`].
pub(super) fn schedule(row: &PgRow) -> Result<Schedule, Error> {
    let corrupt = |what: &str, error: &dyn std::fmt::Display| Error::Corrupt(format!("{what} of a schedule: {error}"));
    let target: &[u8] = row.try_get("target")?;
    let target: Target = serde_json::from_slice(target).map_err(|error| corrupt("target", &error))?;
    let (overlap, misfire): (&str, &str) = (row.try_get("overlap")?, row.try_get("misfire")?);
    let count = |column: &str| -> Result<u64, Error> { Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0)) };
    let few = |number: i32| u32::try_from(number).unwrap_or(0);
    let duration = |column: &str| -> Result<Duration, Error> {
        Ok(Duration::from_millis(
            u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0),
        ))
    };
    Ok(Schedule {
        id: row.try_get("id")?,
        tenant_id: row.try_get("tenant_id")?,
        name: row.try_get("name")?,
        timing: Timing {
            cron: Cron::parse(row.try_get("cron")?, row.try_get("timezone")?)
                .map_err(|error| corrupt("cron", &error))?,
            catch_up: duration("catch_up_ms")?,
            misfire: Misfire::parse(misfire).ok_or_else(|| corrupt("misfire", &misfire))?,
            jitter: duration("jitter_ms")?,
            starts_at: row.try_get("starts_at")?,
            ends_at: row.try_get("ends_at")?,
            max_fires: row
                .try_get::<Option<i64>, _>("max_fires")?
                .and_then(|max| u64::try_from(max).ok()),
        },
        target,
        overlap: Overlap::parse(overlap).ok_or_else(|| corrupt("overlap", &overlap))?,
        enabled: row.try_get("enabled")?,
        paused_reason: row.try_get("paused_reason")?,
        next_fire_at: row.try_get("next_fire_at")?,
        last_fire_at: row.try_get("last_fire_at")?,
        last_job_id: row.try_get("last_job_id")?,
        prior_job_id: row.try_get("prior_job_id")?,
        fired: count("fired")?,
        pause_after_failures: row.try_get::<Option<i32>, _>("pause_after_failures")?.map(few),
        failures_in_row: few(row.try_get("failures_in_row")?),
        version: count("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

fn fire(row: &PgRow) -> Result<Fire, Error> {
    let outcome: &str = row.try_get("outcome")?;
    Ok(Fire {
        fire_at: row.try_get("fire_at")?,
        fired_at: row.try_get("fired_at")?,
        outcome: Outcome::parse(outcome).ok_or_else(|| Error::Corrupt(format!("unknown outcome {outcome}")))?,
        job_id: row.try_get("job_id")?,
        reason: row.try_get("reason")?,
        manual: row.try_get("manual")?,
        backfill: row.try_get("backfill")?,
        job_state: row.try_get("job_state")?,
        job_error: row.try_get("job_error")?,
        job_ended_at: row.try_get("job_ended_at")?,
    })
}
