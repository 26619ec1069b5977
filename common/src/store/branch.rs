//! Branches: a new conversation that repeats another up to one of its messages. Nothing of the old one changes.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::conversations::{Conversation, MESSAGE_COLUMNS, conversation, message};
use super::{Error, Store, workspaces};
use crate::ids::{ConversationId, MessageId, TenantId};
use crate::message::Message;

/// Where a branch leaves its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchAt {
    /// Behind a message, which is repeated.
    Behind(MessageId),
    /// Before the turn of a message: neither what was asked in it nor what was answered is repeated.
    BeforeTurnOf(MessageId),
}

impl BranchAt {
    fn message_id(self) -> MessageId {
        match self {
            Self::Behind(id) | Self::BeforeTurnOf(id) => id,
        }
    }
}

impl Store {
    /// Makes a branch with this id and title; that of the conversation when there is none. `None` when the tenant has no such
    /// conversation, or it no such message.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn branch_conversation(
        &self,
        (tenant_id, from): (TenantId, ConversationId),
        at: BranchAt,
        (id, title): (ConversationId, Option<&str>),
        now: DateTime<Utc>,
    ) -> Result<Option<Conversation>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let made = branch(&mut tx, (tenant_id, from), at, (id, title), now).await?;
            tx.commit().await?;
            Ok(made)
        })
        .await
    }

    /// The message that the turn of a message answers, with whether that one is it. `None` when there is none.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn asked_message(&self, id: ConversationId, of: MessageId) -> Result<Option<(Message, bool)>, Error> {
        let sql = format!(
            "select {MESSAGE_COLUMNS} from messages
             where conversation_id = $1 and position = (select turn from messages where conversation_id = $1 and id = $2)"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(of)
            .fetch_optional(self.pool())
            .await?;
        let asked = row.as_ref().map(message).transpose()?;
        Ok(asked.map(|(_, message)| {
            let is_it = message.id == of;
            (message, is_it)
        }))
    }
}

/// Makes a branch in a transaction: see [`Store::branch_conversation`].
pub(super) async fn branch(
    tx: &mut PgConnection,
    (tenant_id, from): (TenantId, ConversationId),
    at: BranchAt,
    (id, title): (ConversationId, Option<&str>),
    now: DateTime<Utc>,
) -> Result<Option<Conversation>, Error> {
    let place: Option<(i64, i64)> = sqlx::query_as(
        "select m.turn, m.position from conversations c join messages m on m.conversation_id = c.id
         where c.id = $1 and c.tenant_id = $2 and c.deleted_at is null and m.id = $3 for share of c",
    )
    .bind(from)
    .bind(tenant_id)
    .bind(at.message_id())
    .fetch_optional(&mut *tx)
    .await?;
    let Some((turn, position)) = place else { return Ok(None) };
    let until = match at {
        BranchAt::Behind(_) => (turn, position),
        BranchAt::BeforeTurnOf(_) => (turn - 1, i64::MAX),
    };
    sqlx::query(
        "insert into conversations (id, tenant_id, agent_id, agent, title, metadata, user_id, branched_from,
            branched_at, created_at, updated_at)
         select $2, tenant_id, agent_id, agent, coalesce($5, title), metadata, user_id, id, $3, $4, $4
         from conversations where id = $1",
    )
    .bind(from)
    .bind(id)
    .bind(at.message_id())
    .bind(now)
    .bind(title)
    .execute(&mut *tx)
    .await?;
    copy_messages(tx, from, id, until).await?;
    workspaces::branch(tx, (tenant_id, from, id), now).await?;
    let row = sqlx::query("select * from conversations where id = $1")
        .bind(id)
        .fetch_one(&mut *tx)
        .await?;
    conversation(&row).map(Some)
}

/// Repeats messages in the order of the turns, with new ids and positions.
async fn copy_messages(
    tx: &mut PgConnection,
    from: ConversationId,
    to: ConversationId,
    until: (i64, i64),
) -> Result<(), Error> {
    let count: i64 =
        sqlx::query_scalar("select count(*) from messages where conversation_id = $1 and (turn, position) <= ($2, $3)")
            .bind(from)
            .bind(until.0)
            .bind(until.1)
            .fetch_one(&mut *tx)
            .await?;
    let ids: Vec<Uuid> = (0..count).map(|_| MessageId::new().uuid()).collect();
    sqlx::query(
        "insert into messages (id, conversation_id, position, turn, role, parts, said, job_id, usage, created_at)
         select ids.id, $2, place, min(place) over (partition by turn), role, parts, said, job_id, usage, created_at
         from (select *, row_number() over (order by turn, position) as place from messages
            where conversation_id = $1 and (turn, position) <= ($3, $4)) m
         join unnest($5::uuid[]) with ordinality ids (id, ordinal) on ids.ordinal = m.place",
    )
    .bind(from)
    .bind(to)
    .bind(until.0)
    .bind(until.1)
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    sqlx::query("update conversations set position = $2 where id = $1")
        .bind(to)
        .bind(count)
        .execute(&mut *tx)
        .await?;
    Ok(())
}
