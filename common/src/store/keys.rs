//! API keys: who may call, and for whom.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::tenants::{Tenant, tenant};
use super::{Error, Store};
use crate::ids::{ApiKeyId, TenantId};

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Act for every tenant and operate the system.
    Admin,
    /// Act for its own tenant.
    Member,
}

impl Role {
    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
        }
    }

    /// The role that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Admin, Self::Member]
            .into_iter()
            .find(|role| role.as_str() == text)
    }
}

/// A key as it is stored: without the key itself.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Whom it speaks for.
    pub tenant_id: TenantId,
    /// A name for people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its first characters, so that a person can tell keys apart.
    pub prefix: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Since when it is refused.
    pub revoked_at: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "k.id as key_id, k.tenant_id, k.name as key_name, k.role, k.prefix, k.hash, \
     k.created_at as key_created_at, k.revoked_at";

fn key(row: &PgRow) -> Result<ApiKey, Error> {
    let role: String = row.try_get("role")?;
    let hash: Vec<u8> = row.try_get("hash")?;
    Ok(ApiKey {
        id: row.try_get("key_id")?,
        tenant_id: row.try_get("tenant_id")?,
        name: row.try_get("key_name")?,
        role: Role::parse(&role).ok_or_else(|| Error::Corrupt(format!("unknown role {role}")))?,
        prefix: row.try_get("prefix")?,
        hash: hash
            .try_into()
            .map_err(|_other_length| Error::Corrupt("a key's hash is not 32 bytes".to_owned()))?,
        created_at: row.try_get("key_created_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

/// How a key is looked up.
#[derive(Clone, Copy, Debug)]
pub enum KeyRef {
    /// By the SHA-256 of what the caller showed.
    Hash([u8; 32]),
    /// By its id.
    Id(ApiKeyId),
}

impl Store {
    /// Adds a key.
    ///
    /// # Errors
    /// A broken reference when there is no such tenant; otherwise when Postgres is away.
    pub async fn insert_key(&self, key: &ApiKey) -> Result<(), Error> {
        sqlx::query(
            "insert into api_keys (id, tenant_id, name, role, prefix, hash, created_at) values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(key.id)
        .bind(key.tenant_id)
        .bind(&key.name)
        .bind(key.role.as_str())
        .bind(&key.prefix)
        .bind(&key.hash[..])
        .bind(key.created_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Makes sure that a configured key is known, is an admin's and is not revoked.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn ensure_admin_key(&self, key: &ApiKey) -> Result<(), Error> {
        sqlx::query(
            "insert into api_keys (id, tenant_id, name, role, prefix, hash, created_at) values ($1, $2, $3, 'admin', $4, $5, $6)
             on conflict (hash) do update set role = 'admin', revoked_at = null",
        )
        .bind(key.id)
        .bind(key.tenant_id)
        .bind(&key.name)
        .bind(&key.prefix)
        .bind(&key.hash[..])
        .bind(key.created_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// A key that is not revoked, and its tenant.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn valid_key(&self, which: KeyRef) -> Result<Option<(ApiKey, Tenant)>, Error> {
        let (hash, id) = match which {
            KeyRef::Hash(hash) => (Some(hash.to_vec()), None),
            KeyRef::Id(id) => (None, Some(id)),
        };
        let sql = format!(
            "select {COLUMNS}, t.* from api_keys k join tenants t on t.id = k.tenant_id
             where k.revoked_at is null and {}",
            if hash.is_some() {
                "k.hash = $1 and $2::uuid is null"
            } else {
                "k.id = $2 and $1::bytea is null"
            }
        );
        let query = sqlx::query(AssertSqlSafe(sql)).bind(hash).bind(id);
        let row = self.on(self.reading(), async |connection| {
            query.fetch_optional(connection).await
        });
        row.await?.map(|row| Ok((key(&row)?, tenant(&row)?))).transpose()
    }

    /// Up to `limit` keys that are older than `before`, newest first, revoked ones included; of one tenant or of all.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn keys(
        &self,
        tenant_id: Option<TenantId>,
        before: Option<ApiKeyId>,
        limit: u32,
    ) -> Result<Vec<ApiKey>, Error> {
        let sql = format!(
            "select {COLUMNS} from api_keys k
             where ($1::uuid is null or k.tenant_id = $1) and ($2::uuid is null or k.id < $2) order by k.id desc limit $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant_id)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(key).collect()
    }

    /// Revokes a key, of one tenant or of any, and answers it; `None` when there is none.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn revoke_key(
        &self,
        tenant_id: Option<TenantId>,
        id: ApiKeyId,
        now: DateTime<Utc>,
    ) -> Result<Option<ApiKey>, Error> {
        let sql = format!(
            "update api_keys k set revoked_at = coalesce(k.revoked_at, $3)
             where k.id = $1 and ($2::uuid is null or k.tenant_id = $2) returning {COLUMNS}"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(tenant_id)
            .bind(now)
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(key).transpose()
    }
}
