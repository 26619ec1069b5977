//! The next turn of a conversation, when the one before it has ended.

use sqlx::AssertSqlSafe;

use super::row::{self, BRIEF};
use super::{Error, Store};
use crate::ids::JobId;
use crate::job::Brief;

impl Store {
    /// Of the conversations of which these jobs are turns, those queued turns that a claim would take now. Few conversations
    /// have a turn that waits, and only then all of their turns are looked at.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn next_turns(&self, of: &[JobId]) -> Result<Vec<Brief>, Error> {
        self.within(async {
            // A turn waits for an older one, so it was made between that and now.
            let days = of.iter().copied().chain([JobId::new()]);
            let table = self.days().table(self, days).await?;
            let sql = format!(
                "select next.* from (select distinct conversation_id from {table} as jobs where id = any($1)) as ended
                 cross join lateral (
                    select {BRIEF} from {table} as jobs where conversation_id = ended.conversation_id and state = 'queued'
                        and cancel_requested_at is null order by id limit 1
                 ) as next"
            );
            let rows = sqlx::query(AssertSqlSafe(sql)).bind(of).fetch_all(self.pool()).await?;
            let mut waiting: Vec<Brief> = rows.iter().map(row::brief).collect::<Result<_, _>>()?;
            if !waiting.is_empty() {
                let ids: Vec<JobId> = waiting.iter().map(|turn| turn.id).collect();
                let free = self.free_turns(&ids).await?;
                waiting.retain(|turn| free.contains(&turn.id));
            }
            Ok(waiting)
        })
        .await
    }

    /// Of these turns, those that are in nobody's way: as in a claim.
    async fn free_turns(&self, ids: &[JobId]) -> Result<Vec<JobId>, Error> {
        Ok(sqlx::query_scalar(
            "select jobs.id from jobs join conversations v on v.id = jobs.conversation_id
             where jobs.id = any($1) and (v.active_job_id is null or v.active_job_id = jobs.id)
                and not exists (select from jobs older where older.conversation_id = v.id and older.id < jobs.id
                    and older.state not in ('succeeded', 'failed', 'cancelled'))",
        )
        .bind(ids)
        .fetch_all(self.pool())
        .await?)
    }
}
