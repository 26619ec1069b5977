//! Conversations: ordered messages, and the turns that answer them.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row};

use super::agents::json;
use super::row::bigint;
use super::{Error, Store};
use crate::agent::AgentDefinition;
use crate::ids::{AgentId, ConversationId, JobId, MessageId, TenantId};
use crate::message::{Message, Part, Role};

/// A conversation without its messages.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Its id.
    pub id: ConversationId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The saved agent that answers.
    pub agent_id: Option<AgentId>,
    /// The agent that answers, where it is not a saved one.
    pub agent: Option<AgentDefinition>,
    /// A title for people.
    pub title: String,
    /// The submitter's own notes.
    pub metadata: Map<String, Value>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
    /// The turn under way.
    pub active_job_id: Option<JobId>,
    /// Position of the last message; 0 when there is none.
    pub position: u64,
    /// The conversation whose beginning it repeats, and the message up to which it does.
    pub branched_from: Option<(ConversationId, MessageId)>,
    /// When it was begun.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// What may be changed; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct ConversationPatch {
    /// A new title.
    pub title: Option<String>,
    /// New notes.
    pub metadata: Option<Map<String, Value>>,
}

/// Which conversations; what is set must hold.
#[derive(Clone, Debug, Default)]
pub struct ConversationFilter {
    /// Answered by this saved agent.
    pub agent_id: Option<AgentId>,
    /// Of this user.
    pub user_id: Option<String>,
}

/// The columns that [`message`] reads.
pub(super) const MESSAGE_COLUMNS: &str = "id, position, role, parts, job_id, usage, created_at";

pub(super) fn conversation(row: &PgRow) -> Result<Conversation, Error> {
    Ok(Conversation {
        id: row.try_get("id")?,
        tenant_id: row.try_get("tenant_id")?,
        agent_id: row.try_get("agent_id")?,
        agent: row.try_get::<Option<Json<_>>, _>("agent")?.map(|json| json.0),
        title: row.try_get("title")?,
        metadata: row.try_get::<Json<_>, _>("metadata")?.0,
        user_id: row.try_get("user_id")?,
        active_job_id: row.try_get("active_job_id")?,
        position: u64::try_from(row.try_get::<i64, _>("position")?).unwrap_or(0),
        branched_from: row
            .try_get::<Option<ConversationId>, _>("branched_from")?
            .zip(row.try_get("branched_at")?),
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// A message and its position.
pub(super) fn message(row: &PgRow) -> Result<(u64, Message), Error> {
    let role = match row.try_get::<&str, _>("role")? {
        "assistant" => Role::Assistant,
        _ => Role::User,
    };
    let message = Message {
        id: row.try_get("id")?,
        role,
        parts: row.try_get::<Json<Vec<Part>>, _>("parts")?.0,
        job_id: row.try_get("job_id")?,
        usage: row.try_get::<Option<Json<_>>, _>("usage")?.map(|json| json.0),
        created_at: row.try_get("created_at")?,
    };
    Ok((u64::try_from(row.try_get::<i64, _>("position")?).unwrap_or(0), message))
}

impl Store {
    /// Begins a conversation.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_conversation(&self, new: &Conversation) -> Result<(), Error> {
        sqlx::query(
            "insert into conversations (id, tenant_id, agent_id, agent, title, metadata, user_id, created_at, updated_at)
             values ($1, $2, $3, $4::text::json, $5, $6, $7, $8, $8)",
        )
        .bind(new.id)
        .bind(new.tenant_id)
        .bind(new.agent_id)
        .bind(new.agent.as_ref().map(json).transpose()?)
        .bind(&new.title)
        .bind(Json(&new.metadata))
        .bind(&new.user_id)
        .bind(new.created_at)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// A tenant's conversation.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn conversation(&self, tenant_id: TenantId, id: ConversationId) -> Result<Option<Conversation>, Error> {
        let query = sqlx::query("select * from conversations where id = $1 and tenant_id = $2 and deleted_at is null");
        let query = query.bind(id).bind(tenant_id);
        let row = self.on(self.talking(), async |connection| {
            query.fetch_optional(connection).await
        });
        row.await?.as_ref().map(conversation).transpose()
    }

    /// Up to `limit` conversations of a tenant that are older than `before`, newest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn conversations(
        &self,
        tenant_id: TenantId,
        filter: &ConversationFilter,
        before: Option<ConversationId>,
        limit: u32,
    ) -> Result<Vec<Conversation>, Error> {
        let rows = self
            .page_of_conversations("*", tenant_id, filter, (before, limit))
            .await?;
        rows.iter().map(conversation).collect()
    }

    /// These columns of a page of them.
    pub(super) async fn page_of_conversations(
        &self,
        columns: &str,
        tenant_id: TenantId,
        filter: &ConversationFilter,
        (before, limit): (Option<ConversationId>, u32),
    ) -> Result<Vec<PgRow>, Error> {
        let sql = format!(
            "select {columns} from conversations where tenant_id = $1 and deleted_at is null
                and ($2::uuid is null or id < $2)
                and ($3::uuid is null or agent_id = $3) and ($4::text is null or user_id = $4)
             order by id desc limit $5"
        );
        Ok(sqlx::query(AssertSqlSafe(sql))
            .bind(tenant_id)
            .bind(before)
            .bind(filter.agent_id)
            .bind(&filter.user_id)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?)
    }

    /// Changes a conversation and answers it; `None` when there is none.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn update_conversation(
        &self,
        tenant_id: TenantId,
        id: ConversationId,
        patch: &ConversationPatch,
        now: DateTime<Utc>,
    ) -> Result<Option<Conversation>, Error> {
        let row = sqlx::query(
            "update conversations set title = coalesce($3, title), metadata = coalesce($4, metadata), updated_at = $5
             where id = $1 and tenant_id = $2 and deleted_at is null returning *",
        )
        .bind(id)
        .bind(tenant_id)
        .bind(&patch.title)
        .bind(patch.metadata.as_ref().map(Json))
        .bind(now)
        .fetch_optional(self.pool())
        .await?;
        row.as_ref().map(conversation).transpose()
    }

    /// Deletes a conversation for those who look for it. Answers whether there was one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_conversation(
        &self,
        tenant_id: TenantId,
        id: ConversationId,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let done = sqlx::query(
            "update conversations set deleted_at = $3 where id = $1 and tenant_id = $2 and deleted_at is null",
        )
        .bind(id)
        .bind(tenant_id)
        .bind(now)
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Up to `limit` messages after a position, in order, each with its position.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn messages(&self, id: ConversationId, after: u64, limit: u32) -> Result<Vec<(u64, Message)>, Error> {
        let sql = format!(
            "select {MESSAGE_COLUMNS} from messages
             where conversation_id = $1 and position > $2 order by position limit $3"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(bigint(after))
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(message).collect()
    }

    /// One message of a conversation.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn message(&self, id: ConversationId, message_id: MessageId) -> Result<Option<Message>, Error> {
        let sql = format!("select {MESSAGE_COLUMNS} from messages where conversation_id = $1 and id = $2");
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(message_id)
            .fetch_optional(self.pool())
            .await?;
        Ok(row.as_ref().map(message).transpose()?.map(|(_, message)| message))
    }

    /// The turns of a conversation that have not ended, the oldest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn open_turns(&self, tenant_id: TenantId, id: ConversationId) -> Result<Vec<JobId>, Error> {
        self.within(async {
            let mut tx = self.pool().begin_planned().await?;
            let open = sqlx::query_scalar(
                "select id from jobs where conversation_id = $1 and tenant_id = $2
                    and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying') order by id",
            )
            .bind(id)
            .bind(tenant_id)
            .fetch_all(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(open)
        })
        .await
    }
}
