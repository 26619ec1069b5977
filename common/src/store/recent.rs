//! What was committed a moment ago, and Redis may not have heard of.

use chrono::{DateTime, Utc};
use sqlx::Row;

use super::promote::Queued;
use super::{Error, Store};
use crate::ids::{JobId, TenantId};

/// Rows that somebody may have failed to tell Redis of.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    /// Queued jobs between two ids, in order of id.
    pub queued: Vec<Queued>,
    /// Jobs that were queued again, by a retry, a wait that ended, a drained or a lost worker: their ids tell nothing of it.
    pub again: Vec<Queued>,
    /// Open jobs that somebody asked to stop.
    pub cancelling: Vec<(TenantId, JobId)>,
}

impl Store {
    /// Jobs between two ids that are queued, those that were queued again after `again_since`, and open ones that were asked
    /// to stop before `cancelled_before`: of each kind at most `limit`. One statement, for it is asked all the time.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn recent(
        &self,
        (after, until): (JobId, JobId),
        again_since: DateTime<Utc>,
        cancelled_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Recent, Error> {
        self.within(async {
            let rows = sqlx::query(
                "(select 1 as kind, id, tenant_id, queued_at as at from jobs
                  where id > $1 and id < $2 and state = 'queued' order by id limit $5)
                 union all
                 (select 2, id, tenant_id, queued_at from jobs
                  where queued_at <> created_at and queued_at > $3 and state = 'queued' order by queued_at limit $5)
                 union all
                 (select 3, id, tenant_id, stopping_since from jobs
                  where stopping_since < $4 order by stopping_since limit $5)",
            )
            .bind(after)
            .bind(until)
            .bind(again_since)
            .bind(cancelled_before)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
            let mut recent = Recent::default();
            for row in &rows {
                let (id, tenant_id) = (row.try_get("id")?, row.try_get("tenant_id")?);
                let queued = |queued_at| Queued {
                    id,
                    tenant_id,
                    queued_at,
                };
                match row.try_get("kind")? {
                    1 => recent.queued.push(queued(row.try_get("at")?)),
                    2 => recent.again.push(queued(row.try_get("at")?)),
                    _ => recent.cancelling.push((tenant_id, id)),
                }
            }
            Ok(recent)
        })
        .await
    }
}
