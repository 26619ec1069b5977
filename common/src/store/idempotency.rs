//! Idempotency keys: a repeated request is answered with the first one's jobs. A key is written in the transaction of its jobs.

use sqlx::{PgConnection, PgExecutor, Row};

use super::insert::Accepted;
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::NewJob;

/// Remembers a request, so that its repetition is answered with the same jobs.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The submitter's key.
    pub key: String,
    /// SHA-256 of method, path and body.
    pub fingerprint: [u8; 32],
    /// The places in the request, in order, of jobs that were refused before: a repetition shows the others in theirs.
    pub refused: Vec<usize>,
}

impl Store {
    /// What an earlier request with this key makes of one: repeated, or a key that was used for another. `None` when there
    /// was no such request.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn earlier(&self, tenant_id: TenantId, idempotency: &Idempotency) -> Result<Option<Accepted>, Error> {
        earlier(self.pool(), tenant_id, idempotency).await
    }
}

/// Forgets a request that was refused: with the same key it may be made again.
pub(super) async fn forget(tx: &mut PgConnection, tenant_id: TenantId, idempotency: &Idempotency) -> Result<(), Error> {
    sqlx::query("delete from idempotency_keys where tenant_id = $1 and key = $2")
        .bind(tenant_id)
        .bind(&idempotency.key)
        .execute(tx)
        .await?;
    Ok(())
}

/// Remembers the request that these jobs of a tenant came with. The first waits for a concurrent holder of the same key:
/// whoever comes second sees the committed first.
pub(super) async fn remember(
    tx: &mut PgConnection,
    jobs: &[&NewJob],
    idempotency: &Idempotency,
) -> Result<Accepted, Error> {
    let Some(first) = jobs.first() else {
        return Ok(Accepted::Inserted);
    };
    let (tenant_id, at) = (first.tenant_id, first.created_at);
    let mut ids: Vec<Option<JobId>> = jobs.iter().map(|job| Some(job.id)).collect();
    for place in &idempotency.refused {
        ids.insert((*place).min(ids.len()), None);
    }
    let inserted = sqlx::query(
        "insert into idempotency_keys (tenant_id, key, fingerprint, job_ids, created_at) values ($1, $2, $3, $4, $5)
         on conflict do nothing",
    )
    .bind(tenant_id)
    .bind(&idempotency.key)
    .bind(&idempotency.fingerprint[..])
    .bind(&ids)
    .bind(at)
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(Accepted::Inserted);
    }
    let earlier = earlier(tx, tenant_id, idempotency).await?;
    earlier.ok_or(Error::Query(sqlx::Error::RowNotFound))
}

async fn earlier(
    executor: impl PgExecutor<'_>,
    tenant_id: TenantId,
    idempotency: &Idempotency,
) -> Result<Option<Accepted>, Error> {
    let row = sqlx::query("select fingerprint, job_ids from idempotency_keys where tenant_id = $1 and key = $2")
        .bind(tenant_id)
        .bind(&idempotency.key)
        .fetch_optional(executor)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<Vec<u8>, _>("fingerprint")? == idempotency.fingerprint {
        Ok(Some(Accepted::Repeated(row.try_get("job_ids")?)))
    } else {
        Ok(Some(Accepted::KeyReused))
    }
}
