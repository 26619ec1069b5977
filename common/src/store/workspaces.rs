//! Workspaces: which archive is the present one, and who may put another in its place.
//!
//! A save names the version that it began with, and compares and swaps. That of an attempt holds its job's row, so that
//! nobody takes the attempt over meanwhile; that of a request holds the conversation's, so that no turn begins.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::row::{bigint, int};
use super::{Error, Store};
use crate::ids::{ArchiveId, ConversationId, JobId, TenantId, WorkerId};
use crate::workspace::{Owner, Packed, Present};

/// Who writes a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// An attempt, with its fence.
    Attempt {
        /// The job.
        job_id: JobId,
        /// The attempt.
        attempt: u32,
        /// Who holds it.
        worker_id: WorkerId,
    },
    /// A request of the tenant's; refused while a turn of the conversation is under way.
    Request,
}

/// A new version of a workspace, whose archive is stored.
#[derive(Clone, Copy, Debug)]
pub struct Save {
    /// Whose files.
    pub tenant_id: TenantId,
    /// Of what.
    pub owner: Owner,
    /// The version that it began with; 0 when there was none.
    pub expected: u64,
    /// The archive.
    pub packed: Packed,
    /// Size of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Who says so.
    pub writer: Writer,
}

/// What became of a new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// It is the present one, with this number.
    Committed(u64),
    /// There is another version than the expected one, or nobody any more whose files they could be.
    Stale,
    /// The attempt is not the writer's any more, or a turn is under way.
    NotHeld,
}

impl Store {
    /// The present version of a tenant's workspace.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn workspace(&self, tenant_id: TenantId, owner: Owner) -> Result<Option<Present>, Error> {
        let row = sqlx::query(
            "select w.version, w.archive_id, w.updated_at, a.digest, a.bytes, a.entries
             from workspaces w join workspace_archives a on a.id = w.archive_id
             where w.id = $1 and w.tenant_id = $2 and w.owner = $3",
        )
        .bind(owner.id())
        .bind(tenant_id)
        .bind(owner.kind())
        .fetch_optional(self.pool())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let number =
            |name: &str| -> Result<u64, Error> { Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0)) };
        let digest: Vec<u8> = row.try_get("digest")?;
        Ok(Some(Present {
            version: number("version")?,
            archive_id: row.try_get("archive_id")?,
            digest: digest
                .try_into()
                .map_err(|_long| Error::Corrupt("a digest that is none".to_owned()))?,
            bytes: number("bytes")?,
            entries: number("entries")?,
            updated_at: row.try_get("updated_at")?,
        }))
    }

    /// Writes down an archive that will be uploaded, so that it is found when nobody comes back to it.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn begin_archive(&self, tenant_id: TenantId, id: ArchiveId, now: DateTime<Utc>) -> Result<(), Error> {
        sqlx::query("insert into workspace_archives (id, tenant_id, created_at, unused_at) values ($1, $2, $3, $3)")
            .bind(id)
            .bind(tenant_id)
            .bind(now)
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Makes a stored archive the present version.
    ///
    /// # Errors
    /// When Postgres is away: then it may or may not be. The call is not repeated: it would be stale.
    pub async fn save_workspace(&self, save: &Save, now: DateTime<Utc>) -> Result<Saved, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            if !is_held(&mut tx, save).await? {
                return Ok(Saved::NotHeld);
            }
            let Some(before) = swap(&mut tx, save, now).await? else {
                return Ok(Saved::Stale);
            };
            let used = sqlx::query(
                "update workspace_archives set unused_at = null, digest = $2, archive_bytes = $3, bytes = $4, entries = $5
                 where id = $1",
            )
            .bind(save.packed.id)
            .bind(&save.packed.digest[..])
            .bind(bigint(save.packed.archive_bytes))
            .bind(bigint(save.bytes))
            .bind(bigint(save.entries))
            .execute(&mut *tx)
            .await?;
            if used.rows_affected() == 0 {
                return Ok(Saved::Stale);
            }
            release(&mut tx, &before, now).await?;
            tx.commit().await?;
            Ok(Saved::Committed(save.expected + 1))
        })
        .await
    }

    /// Looks at up to `limit` workspaces after one of them, in the order of their ids, and deletes the rows of those
    /// whose conversation or agent is gone. Answers how many it deleted, and the last one that it looked at.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_ownerless_workspaces(
        &self,
        after: Uuid,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<(u64, Option<Uuid>), Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let looked: Vec<Uuid> = sqlx::query_scalar("select id from workspaces where id > $1 order by id limit $2")
                .bind(after)
                .bind(i64::from(limit))
                .fetch_all(&mut *tx)
                .await?;
            let unused: Vec<Uuid> = sqlx::query_scalar(
                "delete from workspaces w where w.id = any($1) and not exists (select from conversations c
                    where w.owner = 'conversation' and c.id = w.id and c.deleted_at is null)
                 and not exists (select from agents a
                    where w.owner = 'agent' and a.id = w.id and a.deleted_at is null)
                 returning archive_id",
            )
            .bind(&looked)
            .fetch_all(&mut *tx)
            .await?;
            release(&mut tx, &unused, now).await?;
            tx.commit().await?;
            Ok((unused.len() as u64, looked.last().copied()))
        })
        .await
    }

    /// Up to `limit` archives that no workspace has had since `before`, the oldest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn unused_archives(&self, before: DateTime<Utc>, limit: u32) -> Result<Vec<ArchiveId>, Error> {
        Ok(
            sqlx::query_scalar("select id from workspace_archives where unused_at < $1 order by unused_at limit $2")
                .bind(before)
                .bind(i64::from(limit))
                .fetch_all(self.pool())
                .await?,
        )
    }

    /// Forgets archives whose objects are deleted.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn forget_archives(&self, ids: &[ArchiveId]) -> Result<u64, Error> {
        let done = sqlx::query("delete from workspace_archives where id = any($1) and unused_at is not null")
            .bind(ids.iter().map(|id| id.uuid()).collect::<Vec<Uuid>>())
            .execute(self.pool())
            .await?;
        Ok(done.rows_affected())
    }
}

/// Gives a new conversation the files of another of the same tenant as its first version: they share the archive. Nothing
/// happens when there are none.
pub(super) async fn branch(
    tx: &mut PgConnection,
    (tenant_id, from, to): (TenantId, ConversationId, ConversationId),
    now: DateTime<Utc>,
) -> Result<(), Error> {
    // The lock keeps the archive in use until the second row has it too.
    sqlx::query(
        "with source as (select archive_id from workspaces where id = $1 and tenant_id = $3 for update)
         insert into workspaces (id, tenant_id, owner, version, archive_id, updated_at)
         select $2, $3, 'conversation', 1, archive_id, $4 from source on conflict (id) do nothing",
    )
    .bind(from)
    .bind(to)
    .bind(tenant_id)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether the writer may write, until the end of the transaction.
async fn is_held(tx: &mut PgConnection, save: &Save) -> Result<bool, Error> {
    let found: Option<bool> = match (save.writer, save.owner) {
        (
            Writer::Attempt {
                job_id,
                attempt,
                worker_id,
            },
            _,
        ) => {
            sqlx::query_scalar(
                "select true from jobs where id = $1 and tenant_id = $2 and state = 'running' and attempt = $3
                    and worker_id = $4 for share",
            )
            .bind(job_id)
            .bind(save.tenant_id)
            .bind(int(attempt))
            .bind(worker_id)
            .fetch_optional(tx)
            .await?
        }
        (Writer::Request, Owner::Conversation(id)) => {
            // A claim takes the conversation by an update of this row.
            sqlx::query_scalar(
                "select active_job_id is null from conversations where id = $1 and tenant_id = $2 for update",
            )
            .bind(id)
            .bind(save.tenant_id)
            .fetch_optional(tx)
            .await?
        }
        (Writer::Request, Owner::Agent(_)) => None,
    };
    Ok(found.unwrap_or(false))
}

/// Puts the new version in the place of the expected one; answers the archive that was there, or nothing when it is not.
async fn swap(tx: &mut PgConnection, save: &Save, now: DateTime<Utc>) -> Result<Option<Vec<Uuid>>, Error> {
    let before: Option<Uuid> = sqlx::query_scalar(
        "select archive_id from workspaces where id = $1 and tenant_id = $2 and version = $3 for update",
    )
    .bind(save.owner.id())
    .bind(save.tenant_id)
    .bind(bigint(save.expected))
    .fetch_optional(&mut *tx)
    .await?;
    if before.is_none() && save.expected > 0 {
        return Ok(None);
    }
    let (job_id, attempt) = match save.writer {
        Writer::Attempt { job_id, attempt, .. } => (Some(job_id), Some(int(attempt))),
        Writer::Request => (None, None),
    };
    let done = sqlx::query(
        "insert into workspaces as w (id, tenant_id, owner, version, archive_id, job_id, attempt, updated_at)
         select $1, $2, $3, $4 + 1, $5, $6, $7, $8
         where exists (select from conversations c where $3 = 'conversation' and c.id = $1 and c.tenant_id = $2
                and c.deleted_at is null)
            or exists (select from agents a where $3 = 'agent' and a.id = $1 and a.tenant_id = $2
                and a.deleted_at is null)
         on conflict (id) do update set version = excluded.version, archive_id = excluded.archive_id,
            job_id = excluded.job_id, attempt = excluded.attempt, updated_at = excluded.updated_at
         where w.version = $4",
    )
    .bind(save.owner.id())
    .bind(save.tenant_id)
    .bind(save.owner.kind())
    .bind(bigint(save.expected))
    .bind(save.packed.id)
    .bind(job_id)
    .bind(attempt)
    .bind(now)
    .execute(tx)
    .await?;
    Ok((done.rows_affected() == 1).then(|| before.into_iter().collect()))
}

/// Notes that archives are not used any more, unless another workspace has them.
async fn release(tx: &mut PgConnection, archives: &[Uuid], now: DateTime<Utc>) -> Result<(), Error> {
    sqlx::query(
        "update workspace_archives a set unused_at = $2 where id = any($1)
            and not exists (select from workspaces w where w.archive_id = a.id)",
    )
    .bind(archives)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}
