//! Tenants.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Error, Store};
use crate::ids::TenantId;

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
}

pub(super) const COLUMNS: &str = "id, name, weight, priority_max, max_running, rate, created_at";

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
            "insert into tenants (id, name, weight, priority_max, max_running, rate, created_at)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(tenant.id)
        .bind(&tenant.name)
        .bind(super::row::int(tenant.weight))
        .bind(i16::from(tenant.priority_max))
        .bind(int(tenant.max_running))
        .bind(int(tenant.rate))
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

    /// Changes a tenant and answers it; `None` when there is none.
    ///
    /// # Errors
    /// As [`Self::insert_tenant`].
    pub async fn update_tenant(&self, id: TenantId, patch: &TenantPatch) -> Result<Option<Tenant>, Error> {
        let sql = format!(
            "update tenants set name = coalesce($2, name), weight = coalesce($3, weight),
                priority_max = coalesce($4, priority_max),
                max_running = case when $5 then $6 else max_running end, rate = case when $7 then $8 else rate end
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
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(tenant).transpose()
    }
}

impl Store {
    /// The tenants whose weight is not the default one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn tenant_weights(&self) -> Result<Vec<(TenantId, u32)>, Error> {
        let rows: Vec<(TenantId, i32)> = sqlx::query_as("select id, weight from tenants where weight <> 1")
            .fetch_all(self.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(id, weight)| (id, u32::try_from(weight).unwrap_or(1)))
            .collect())
    }
}
