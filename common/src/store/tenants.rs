//! Tenants.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::limits::{rate_limit, rate_window_ms};
use super::{Error, Store};
use crate::ids::TenantId;
use crate::job::limit::{Limit, Pause};

/// An isolated customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name, unique.
    pub name: String,
    /// Its share of the workers relative to other tenants.
    pub weight: u32,
    /// The highest level that its jobs may ask for.
    pub priority_max: u8,
    /// Jobs that may run at once.
    pub max_running: Option<u32>,
    /// Requests a second over HTTP; the operator's default when absent.
    pub rate: Option<u32>,
    /// Jobs that may start within any window of this length.
    pub run_rate: Option<(u32, Duration)>,
    /// Since when nothing of it is released to workers.
    pub paused_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// What may be changed; a field that is `None` stays. The inner `None` of a limit removes it.
#[derive(Clone, Debug, Default)]
#[expect(clippy::option_option, reason = "absent and null mean different things in a patch")]
pub struct TenantPatch {
    /// A new name.
    pub name: Option<String>,
    /// A new weight.
    pub weight: Option<u32>,
    /// A new highest level.
    pub priority_max: Option<u8>,
    /// A new limit of running jobs.
    pub max_running: Option<Option<u32>>,
    /// A new rate.
    pub rate: Option<Option<u32>>,
    /// A new limit of starts.
    pub run_rate: Option<Option<(u32, Duration)>>,
}

pub(super) const COLUMNS: &str =
    "id, name, weight, priority_max, max_running, rate, run_limit, run_window_ms, paused_at, created_at";

pub(super) fn tenant(row: &PgRow) -> Result<Tenant, Error> {
    let limit = |column: &str| -> Result<Option<u32>, Error> {
        Ok(row
            .try_get::<Option<i32>, _>(column)?
            .and_then(|n| u32::try_from(n).ok()))
    };
    Ok(Tenant {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        weight: u32::try_from(row.try_get::<i32, _>("weight")?).unwrap_or(1),
        priority_max: u8::try_from(row.try_get::<i16, _>("priority_max")?).unwrap_or(0),
        max_running: limit("max_running")?,
        rate: limit("rate")?,
        run_rate: super::limits::rate(row)?,
        paused_at: row.try_get("paused_at")?,
        created_at: row.try_get("created_at")?,
    })
}

fn int(number: Option<u32>) -> Option<i32> {
    number.map(super::row::int)
}

impl Store {
    /// Adds a tenant.
    ///
    /// # Errors
    /// A conflict on `tenants_name_key` when the name is taken; otherwise when Postgres is away.
    pub async fn insert_tenant(&self, tenant: &Tenant) -> Result<(), Error> {
        sqlx::query(
            "insert into tenants (id, name, weight, priority_max, max_running, rate, run_limit, run_window_ms, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(tenant.id)
        .bind(&tenant.name)
        .bind(super::row::int(tenant.weight))
        .bind(i16::from(tenant.priority_max))
        .bind(int(tenant.max_running))
        .bind(int(tenant.rate))
        .bind(rate_limit(tenant.run_rate))
        .bind(rate_window_ms(tenant.run_rate))
        .bind(tenant.created_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// The tenant of this name, which is made when there is none.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ensure_tenant(&self, name: &str, now: DateTime<Utc>) -> Result<Tenant, Error> {
        sqlx::query("insert into tenants (id, name, created_at) values ($1, $2, $3) on conflict (name) do nothing")
            .bind(TenantId::new())
            .bind(name)
            .bind(now)
            .execute(self.pool())
            .await?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from tenants where name = $1"
        )))
        .bind(name)
        .fetch_one(self.pool())
        .await?;
        tenant(&row)
    }

    /// A tenant.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>, Error> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from tenants where id = $1"
        )))
        .bind(id)
        .fetch_optional(self.pool())
        .await?;
        row.as_ref().map(tenant).transpose()
    }

    /// Up to `limit` tenants that are older than `before`, newest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn tenants(&self, before: Option<TenantId>, limit: u32) -> Result<Vec<Tenant>, Error> {
        let sql = format!("select {COLUMNS} from tenants where $1::uuid is null or id < $1 order by id desc limit $2");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(tenant).collect()
    }

    /// Pauses or resumes a tenant and answers it; `None` when there is none. Pausing a paused one changes nothing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn set_tenant_paused(
        &self,
        id: TenantId,
        paused: bool,
        now: DateTime<Utc>,
    ) -> Result<Option<Tenant>, Error> {
        let sql = format!(
            "update tenants set paused_at = case when $2 then coalesce(paused_at, $3) end where id = $1 returning {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(paused)
            .bind(now)
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(tenant).transpose()
    }

    /// Changes a tenant and answers it; `None` when there is none.
    ///
    /// # Errors
    /// As [`Self::insert_tenant`].
    pub async fn update_tenant(&self, id: TenantId, patch: &TenantPatch) -> Result<Option<Tenant>, Error> {
        let sql = format!(
            "update tenants set name = coalesce($2, name), weight = coalesce($3, weight),
                priority_max = coalesce($4, priority_max),
                max_running = case when $5 then $6 else max_running end, rate = case when $7 then $8 else rate end,
                run_limit = case when $9 then $10 else run_limit end,
                run_window_ms = case when $9 then $11 else run_window_ms end
             where id = $1 returning {COLUMNS}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(&patch.name)
            .bind(int(patch.weight))
            .bind(patch.priority_max.map(i16::from))
            .bind(patch.max_running.is_some())
            .bind(int(patch.max_running.flatten()))
            .bind(patch.rate.is_some())
            .bind(int(patch.rate.flatten()))
            .bind(patch.run_rate.is_some())
            .bind(rate_limit(patch.run_rate.flatten()))
            .bind(rate_window_ms(patch.run_rate.flatten()))
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(tenant).transpose()
    }
}

impl Tenant {
    /// What its jobs are limited to.
    pub fn limit(&self) -> Limit {
        Limit {
            max_running: self.max_running,
            rate: self.run_rate,
            pause: self.paused_at.map(|_| Pause::Open),
        }
    }
}
