//! The messages of a conversation, as a turn reads them.

use sqlx::Row;
use sqlx::types::Json;

use super::{Error, Store};
use crate::ids::{ConversationId, MessageId};
use crate::message::{Message, Part, Role, Usage};

impl Store {
    /// A conversation's messages up to one of them, in order; none when that one is not there.
    ///
    /// Turns run one at a time in the order of their messages, so what is before a turn's message is complete; an
    /// answer that was added behind a waiting message is before it in what a model should see.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn messages_until(
        &self,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Vec<Message>, Error> {
        // A waiting user message has a lower position than the answer to the one before it, so the order is that of
        // the turns: a message of a job comes after the user message that its job answers.
        let rows = sqlx::query(
            "select id, role, parts, job_id, usage, created_at from messages
             where conversation_id = $1
               and exists (select from messages asked where asked.conversation_id = $1 and asked.id = $2)
               and (role = 'assistant' or job_id is not null or position <= (select position from messages where id = $2))
             order by position",
        )
        .bind(conversation_id)
        .bind(message_id)
        .fetch_all(self.pool())
        .await?;
        let mut messages = rows
            .iter()
            .map(|row| {
                let role = match row.try_get::<&str, _>("role")? {
                    "assistant" => Role::Assistant,
                    _ => Role::User,
                };
                Ok(Message {
                    id: row.try_get("id")?,
                    role,
                    parts: row.try_get::<Json<Vec<Part>>, _>("parts")?.0,
                    job_id: row.try_get("job_id")?,
                    usage: row.try_get::<Option<Json<Usage>>, _>("usage")?.map(|json| json.0),
                    created_at: row.try_get("created_at")?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        // The message that is answered comes last.
        if let Some(index) = messages.iter().position(|message| message.id == message_id) {
            let asked = messages.remove(index);
            messages.push(asked);
        }
        Ok(messages)
    }
}
