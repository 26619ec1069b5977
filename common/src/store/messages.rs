//! The messages of a conversation, as a turn reads them.

use sqlx::Row;

use super::conversations::{MESSAGE_COLUMNS, message};
use super::{Error, Store};
use crate::ids::{ConversationId, MessageId};
use crate::message::Message;

impl Store {
    /// A conversation's messages up to one of them, in the order of its turns; none when that one is not there.
    ///
    /// Turns run one at a time in the order of their messages, so what is before a turn's message is complete. A message
    /// that waits has a lower position than the answer to the one before it: the turn counts first, then the position.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn messages_until(
        &self,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Vec<Message>, Error> {
        let sql = format!(
            "with asked as (select turn from messages where conversation_id = $1 and id = $2)
             select {MESSAGE_COLUMNS} from messages
             where conversation_id = $1 and (id = $2 or turn < (select turn from asked)) and exists (select from asked)
             order by turn, position"
        );
        let query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(conversation_id)
            .bind(message_id);
        let rows = self.on(self.talking(), async |connection| query.fetch_all(connection).await);
        rows.await?
            .iter()
            .map(|row| message(row).map(|(_, message)| message))
            .collect()
    }

    /// Up to `limit` messages in the order of the turns, behind a place in it, each with its place (turn, position).
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn messages_in_order(
        &self,
        id: ConversationId,
        after: (i64, i64),
        limit: u32,
    ) -> Result<Vec<((i64, i64), Message)>, Error> {
        let sql = format!(
            "select {MESSAGE_COLUMNS}, turn from messages
             where conversation_id = $1 and (turn, position) > ($2, $3) order by turn, position limit $4"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(after.0)
            .bind(after.1)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter()
            .map(|row| {
                let place = (row.try_get("turn")?, row.try_get("position")?);
                Ok((place, message(row)?.1))
            })
            .collect()
    }
}
