//! Forgetting a deleted conversation: everything that was said in it, and what its turns left behind.
//!
//! A conversation is deleted for its readers at once; its content goes when no turn of it is open any more, because a
//! turn under way still reads it. What stays is its id, for what names it, the times and outcomes of its jobs, and what
//! they used.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::{Error, Store, subjects};
use crate::ids::ConversationId;

impl Store {
    /// Deleted conversations that have content and no open turn, the one deleted first before others; up to `limit`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn unforgotten_conversations(&self, limit: u32) -> Result<Vec<ConversationId>, Error> {
        Ok(sqlx::query_scalar(
            "select id from conversations c where deleted_at is not null and forgotten_at is null
                and not exists (select from jobs j where j.conversation_id = c.id
                    and j.state in ('scheduled', 'queued', 'running', 'waiting', 'retrying'))
             order by deleted_at limit $1",
        )
        .bind(i64::from(limit))
        .fetch_all(self.pool())
        .await?)
    }

    /// Removes the content of a deleted conversation, unless a turn of it is open. Answers whether it did.
    ///
    /// # Errors
    /// When Postgres is away; then everything is still there.
    pub async fn forget_conversation(&self, id: ConversationId, now: DateTime<Utc>) -> Result<bool, Error> {
        self.within(async {
            let mut tx = self.pool().begin_planned().await?;
            // The row's lock keeps new turns away: whoever takes one updates it.
            let found: Option<i32> = sqlx::query_scalar(
                "select 1 from conversations c where id = $1 and deleted_at is not null and forgotten_at is null
                    and not exists (select from jobs j where j.conversation_id = c.id
                        and j.state in ('scheduled', 'queued', 'running', 'waiting', 'retrying')) for update",
            )
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
            if found.is_none() {
                return Ok(false);
            }
            let of_jobs = "where job_id in (select id from jobs where conversation_id = $1)";
            for table in [
                "job_events",
                "journal",
                "journal_begun",
                "job_messages",
                "approvals",
                "egress_decisions",
            ] {
                let delete = format!("delete from {table} {of_jobs}");
                sqlx::query(AssertSqlSafe(delete)).bind(id).execute(&mut *tx).await?;
            }
            subjects::forget(&mut tx, id).await?;
            sqlx::query("delete from messages where conversation_id = $1")
                .bind(id)
                .execute(&mut *tx)
                .await?;
            sqlx::query(
                "update jobs set input = '{}', result = null, metadata = '{}', user_id = null,
                    error_message = case when error_code is not null then '' end
                 where conversation_id = $1",
            )
            .bind(id)
            .execute(&mut *tx)
            .await?;
            let attempts = format!("update attempts set error_message = '' {of_jobs} and error_message is not null");
            sqlx::query(AssertSqlSafe(attempts)).bind(id).execute(&mut *tx).await?;
            sqlx::query(
                "update conversations set title = '', metadata = '{}', user_id = null, forgotten_at = $2,
                    agent = case when agent is not null then '{}'::json end
                 where id = $1",
            )
            .bind(id)
            .bind(now)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }
}
