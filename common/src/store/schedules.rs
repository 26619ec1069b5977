//! Saved schedules and what became of their due times. Firing is [`super::fire`].

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::row::{bigint, ms};
use super::{Error, Store};
use crate::cron::Cron;
use crate::ids::{ScheduleId, TenantId};
use crate::schedule::{Fire, Outcome, Overlap, Schedule, Target, Timing};

/// The columns that [`schedule`] reads.
pub(super) const COLUMNS: &str = "id, tenant_id, name, cron, timezone, target, overlap, catch_up_ms, jitter_ms, \
     starts_at, ends_at, enabled, paused_reason, next_fire_at, last_fire_at, last_job_id, version, created_at, updated_at";

const FIRE_COLUMNS: &str = "fire_at, fired_at, outcome, job_id, reason, manual";

impl Store {
    /// Saves a new schedule.
    ///
    /// # Errors
    /// When Postgres is away, or refuses the data.
    pub async fn create_schedule(&self, schedule: &Schedule) -> Result<(), Error> {
        let timing = &schedule.timing;
        sqlx::query(
            "insert into schedules (id, tenant_id, name, cron, timezone, target, overlap, catch_up_ms, jitter_ms,
                starts_at, ends_at, enabled, paused_reason, next_fire_at, due_at, version, created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
        )
        .bind(schedule.id)
        .bind(schedule.tenant_id)
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
        .bind(schedule.next_fire_at)
        .bind(schedule.next_fire_at.map(|at| at + schedule.delay()))
        .bind(bigint(schedule.version))
        .bind(schedule.created_at)
        .bind(schedule.updated_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Saves an edited schedule, if it still has `version`. Its due times are moved only when `reschedule` says so:
    /// the scheduler may have fired since it was read. Answers whether it was saved; then its version is one higher.
    ///
    /// # Errors
    /// When Postgres is away, or refuses the data.
    pub async fn update_schedule(&self, schedule: &Schedule, version: u64, reschedule: bool) -> Result<bool, Error> {
        let timing = &schedule.timing;
        let done = sqlx::query(
            "update schedules set name = $4, cron = $5, timezone = $6, target = $7, overlap = $8, catch_up_ms = $9,
                jitter_ms = $10, starts_at = $11, ends_at = $12, enabled = $13, paused_reason = $14, updated_at = $15,
                next_fire_at = case when $16 then $17 else next_fire_at end,
                due_at = case when $16 then $18 else due_at end, version = version + 1
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

    /// Up to `limit` decided due times of a schedule before `before`, latest first.
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
        rows.iter().map(fire).collect()
    }
}

fn target(schedule: &Schedule) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&schedule.target).map_err(|error| Error::Corrupt(format!("a target cannot be written: {error}")))
}

/// A schedule from a row with [`COLUMNS`].
pub(super) fn schedule(row: &PgRow) -> Result<Schedule, Error> {
    let corrupt = |what: &str, error: &dyn std::fmt::Display| Error::Corrupt(format!("{what} of a schedule: {error}"));
    let target: &[u8] = row.try_get("target")?;
    let target: Target = serde_json::from_slice(target).map_err(|error| corrupt("target", &error))?;
    let overlap: &str = row.try_get("overlap")?;
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
            jitter: duration("jitter_ms")?,
            starts_at: row.try_get("starts_at")?,
            ends_at: row.try_get("ends_at")?,
        },
        target,
        overlap: Overlap::parse(overlap).ok_or_else(|| corrupt("overlap", &overlap))?,
        enabled: row.try_get("enabled")?,
        paused_reason: row.try_get("paused_reason")?,
        next_fire_at: row.try_get("next_fire_at")?,
        last_fire_at: row.try_get("last_fire_at")?,
        last_job_id: row.try_get("last_job_id")?,
        version: u64::try_from(row.try_get::<i64, _>("version")?).unwrap_or(0),
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
    })
}
