//! What taking a turn of a conversation writes, inside a transaction that has locked the conversation.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::{Timestamp, Uuid};

use super::Error;
use super::agents::json;
use crate::ids::{ConversationId, JobId};
use crate::message::{Message, Role};

/// Characters of a title that is made from a message.
const TITLE_CHARS: usize = 80;

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

/// Adds a user's message at its position, with which a turn begins.
pub(super) async fn insert_message(
    connection: &mut PgConnection,
    id: ConversationId,
    position: i64,
    message: &Message,
) -> Result<(), Error> {
    let new = NewMessage {
        conversation_id: id,
        position,
        turn: position,
        message,
    };
    write_message(connection, &new).await
}

/// A message about to be written.
pub(super) struct NewMessage<'a> {
    pub(super) conversation_id: ConversationId,
    pub(super) position: i64,
    /// Position of the message that its turn answers.
    pub(super) turn: i64,
    pub(super) message: &'a Message,
}

/// Adds a message, unless it is there: a turn that waited has written what it had said. JSON goes as text: bound as JSON it
/// would be checked as `jsonb`, which refuses NUL in strings.
pub(super) async fn write_message(connection: &mut PgConnection, new: &NewMessage<'_>) -> Result<(), Error> {
    let message = new.message;
    sqlx::query(
        "insert into messages (id, conversation_id, position, turn, role, parts, said, job_id, usage, created_at)
         values ($1, $2, $3, $4, $5, $6::text::json, $7, $8, $9::text::json, $10)
         on conflict (id) do nothing",
    )
    .bind(message.id)
    .bind(new.conversation_id)
    .bind(new.position)
    .bind(new.turn)
    .bind(match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    })
    .bind(json(&message.parts)?)
    .bind(said(message))
    .bind(message.job_id)
    .bind(message.usage.as_ref().map(json).transpose()?)
    .bind(message.created_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a search finds of a message. Postgres has no NUL in texts.
pub(super) fn said(message: &Message) -> String {
    message.text().replace('\0', "\u{fffd}")
}

/// The title of a conversation that has none: the beginning of its first message.
pub(super) fn title(message: &Message) -> String {
    let text = said(message);
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    if line.chars().count() <= TITLE_CHARS {
        return line.to_owned();
    }
    let cut: String = line.chars().take(TITLE_CHARS - 1).collect();
    let whole_words = cut
        .rsplit_once(' ')
        .map(|(words, _)| words)
        .filter(|words| words.len() * 2 > cut.len());
    format!("{}…", whole_words.unwrap_or(&cut).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_the_first_line_cut_between_words() {
        let titled = |text: &str| title(&Message::user(text, DateTime::UNIX_EPOCH));
        assert_eq!(titled("\n  Holiday plans \nfor May"), "Holiday plans");
        assert_eq!(titled("   "), "");
        let long = titled(&"word ".repeat(40));
        assert!(long.ends_with("word…") && long.chars().count() <= TITLE_CHARS, "{long}");
        assert_eq!(titled(&"é".repeat(100)).chars().count(), TITLE_CHARS);
    }
}
