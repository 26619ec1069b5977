//! What taking a turn of a conversation writes, inside a transaction that has locked the conversation.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::{Timestamp, Uuid};

use super::Error;
use super::agents::json;
use crate::ids::{ConversationId, JobId};
use crate::message::Message;

/// An id above, and a time not before, those of the open turns, whoever's clock made them: a turn waits for those with
/// lower ids, and the queue offers the oldest first.
pub(super) async fn after_open_turns(
    connection: &mut PgConnection,
    id: ConversationId,
    now: DateTime<Utc>,
) -> Result<(JobId, DateTime<Utc>), Error> {
    let last: Option<(Uuid, DateTime<Utc>)> = sqlx::query_as(
        "select id, created_at from jobs where conversation_id = $1
            and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying') order by id desc limit 1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    let created_at = last.map_or(now, |(_, created_at)| now.max(created_at));
    Ok((id_after(last.map(|(last, _)| last)), created_at))
}

/// A new id that is above another.
pub(super) fn id_after(last: Option<Uuid>) -> JobId {
    let fresh = JobId::new();
    let made = last
        .filter(|last| *last >= fresh.uuid())
        .and_then(|last| last.get_timestamp());
    let Some(made) = made else { return fresh };
    let (seconds, nanos) = made.to_unix();
    let next = seconds * 1_000 + u64::from(nanos) / 1_000_000 + 1;
    let nanos = u32::try_from(next % 1_000).unwrap_or(0) * 1_000_000;
    JobId(Uuid::new_v7(Timestamp::from_unix(uuid::NoContext, next / 1_000, nanos)))
}

/// Adds a user's message at the end of a conversation that the transaction has locked.
pub(super) async fn add_message(
    connection: &mut PgConnection,
    id: ConversationId,
    message: &Message,
) -> Result<(), Error> {
    let position: i64 = sqlx::query_scalar(
        "update conversations set position = position + 1, updated_at = $2 where id = $1 returning position",
    )
    .bind(id)
    .bind(message.created_at)
    .fetch_one(&mut *connection)
    .await?;
    insert_message(connection, id, position, message).await
}

/// Whether a turn is open.
pub(super) async fn is_busy(connection: &mut PgConnection, id: ConversationId) -> Result<bool, Error> {
    Ok(sqlx::query_scalar(
        "select exists (select from jobs where conversation_id = $1
            and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying'))",
    )
    .bind(id)
    .fetch_one(connection)
    .await?)
}

/// Adds a user's message at its position.
pub(super) async fn insert_message(
    connection: &mut PgConnection,
    id: ConversationId,
    position: i64,
    message: &Message,
) -> Result<(), Error> {
    sqlx::query(
        "insert into messages (id, conversation_id, position, role, parts, created_at)
         values ($1, $2, $3, 'user', $4::text::json, $5)",
    )
    .bind(message.id)
    .bind(id)
    .bind(position)
    .bind(json(&message.parts)?)
    .bind(message.created_at)
    .execute(connection)
    .await?;
    Ok(())
}
