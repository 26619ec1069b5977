//! Agents and their versions.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::row::int;
use super::{Error, Store};
use crate::agent::AgentDefinition;
use crate::ids::{AgentId, TenantId};

/// A saved agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// The current version, from 1.
    pub version: u32,
    /// What it is.
    pub definition: AgentDefinition,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its current version was made.
    pub updated_at: DateTime<Utc>,
}

/// One version of an agent.
#[derive(Clone, Debug)]
pub struct AgentVersion {
    /// Its number, from 1.
    pub version: u32,
    /// What the agent was.
    pub definition: AgentDefinition,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// JSON as text: bound as JSON it would be checked as `jsonb`, which refuses NUL in strings.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

fn number(row: &PgRow) -> Result<u32, Error> {
    Ok(u32::try_from(row.try_get::<i32, _>("version")?).unwrap_or(1))
}

fn agent(row: &PgRow) -> Result<Agent, Error> {
    Ok(Agent {
        id: row.try_get("id")?,
        version: number(row)?,
        definition: row.try_get::<Json<_>, _>("definition")?.0,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

fn version(row: &PgRow) -> Result<AgentVersion, Error> {
    Ok(AgentVersion {
        version: number(row)?,
        definition: row.try_get::<Json<_>, _>("definition")?.0,
        created_at: row.try_get("created_at")?,
    })
}

async fn insert_version(
    connection: &mut PgConnection,
    id: AgentId,
    number: i32,
    definition: &AgentDefinition,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    sqlx::query(
        "insert into agent_versions (agent_id, version, definition, created_at) values ($1, $2, $3::text::json, $4)",
    )
    .bind(id)
    .bind(number)
    .bind(json(definition)?)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Saves a new agent as version 1.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_agent(
        &self,
        tenant_id: TenantId,
        definition: &AgentDefinition,
        now: DateTime<Utc>,
    ) -> Result<Agent, Error> {
        self.within(async {
            let id = AgentId::new();
            let mut tx = self.pool().begin().await?;
            let row = sqlx::query(
                "insert into agents (id, tenant_id, name, version, definition, created_at, updated_at)
                 values ($1, $2, $3, 1, $4::text::json, $5, $5) returning *",
            )
            .bind(id)
            .bind(tenant_id)
            .bind(&definition.name)
            .bind(json(definition)?)
            .bind(now)
            .fetch_one(&mut *tx)
            .await?;
            insert_version(&mut tx, id, 1, definition, now).await?;
            tx.commit().await?;
            agent(&row)
        })
        .await
    }

    /// A tenant's agent.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn agent(&self, tenant_id: TenantId, id: AgentId) -> Result<Option<Agent>, Error> {
        let row = sqlx::query("select * from agents where id = $1 and tenant_id = $2 and deleted_at is null")
            .bind(id)
            .bind(tenant_id)
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(agent).transpose()
    }

    /// Up to `limit` agents of a tenant that are older than `before`, newest first; with `text` in their name.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn agents(
        &self,
        tenant_id: TenantId,
        text: Option<&str>,
        before: Option<AgentId>,
        limit: u32,
    ) -> Result<Vec<Agent>, Error> {
        let rows = sqlx::query(
            "select * from agents where tenant_id = $1 and deleted_at is null and ($2::uuid is null or id < $2)
                and ($3::text is null or strpos(lower(name), lower($3)) > 0)
             order by id desc limit $4",
        )
        .bind(tenant_id)
        .bind(before)
        .bind(text)
        .bind(i64::from(limit))
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(agent).collect()
    }

    /// Saves another version over `expected`; `None` when the agent is gone or has another version by now.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn update_agent(
        &self,
        tenant_id: TenantId,
        id: AgentId,
        expected: u32,
        definition: &AgentDefinition,
        now: DateTime<Utc>,
    ) -> Result<Option<Agent>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let row = sqlx::query(
                "update agents set name = $4, version = version + 1, definition = $5::text::json, updated_at = $6
                 where id = $1 and tenant_id = $2 and version = $3 and deleted_at is null returning *",
            )
            .bind(id)
            .bind(tenant_id)
            .bind(int(expected))
            .bind(&definition.name)
            .bind(json(definition)?)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await?;
            let Some(row) = row else { return Ok(None) };
            insert_version(&mut tx, id, row.try_get("version")?, definition, now).await?;
            tx.commit().await?;
            agent(&row).map(Some)
        })
        .await
    }

    /// Deletes an agent for those who look for it; its versions and jobs stay. Answers whether there was one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_agent(&self, tenant_id: TenantId, id: AgentId, now: DateTime<Utc>) -> Result<bool, Error> {
        let done =
            sqlx::query("update agents set deleted_at = $3 where id = $1 and tenant_id = $2 and deleted_at is null")
                .bind(id)
                .bind(tenant_id)
                .bind(now)
                .execute(self.pool())
                .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Versions of an agent below `before`, newest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn agent_versions(
        &self,
        id: AgentId,
        before: Option<u32>,
        limit: u32,
    ) -> Result<Vec<AgentVersion>, Error> {
        let rows = sqlx::query(
            "select * from agent_versions where agent_id = $1 and ($2::integer is null or version < $2)
             order by version desc limit $3",
        )
        .bind(id)
        .bind(before.map(int))
        .bind(i64::from(limit))
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(version).collect()
    }

    /// One version of an agent.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn agent_version(&self, id: AgentId, number: u32) -> Result<Option<AgentVersion>, Error> {
        let row = sqlx::query("select * from agent_versions where agent_id = $1 and version = $2")
            .bind(id)
            .bind(int(number))
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(version).transpose()
    }
}
