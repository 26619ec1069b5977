//! Searching conversations by what was said in them.
//!
//! No index holds that: every turn would pay for it. A search looks through some conversations at a time, the newest first,
//! and a page of it ends when its time is over, wherever it is; the next goes on there.

use std::time::Duration;

use sqlx::Row;
use tokio::time::Instant;

use super::conversations::{Conversation, ConversationFilter, conversation};
use super::{Error, Store};
use crate::ids::{ConversationId, TenantId};

/// Conversations that are looked through first; then twice as many, or half, as time tells.
const FIRST: u32 = 16;
/// Most of them at once.
const MOST: u32 = 1_024;

/// What is searched for, and how far.
#[derive(Clone, Debug)]
pub struct Search {
    /// What the title or a message has in it, in whatever case.
    pub text: String,
    /// Which conversations.
    pub filter: ConversationFilter,
    /// Only those that are older than this one.
    pub before: Option<ConversationId>,
    /// Most of a page.
    pub limit: u32,
    /// When this is over the page ends.
    pub time: Duration,
}

/// A page of a search.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Those that match, newest first.
    pub conversations: Vec<Conversation>,
    /// Where the search goes on; `None` when it came to the end.
    pub next: Option<ConversationId>,
}

impl Store {
    /// Looks through a tenant's conversations.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn search_conversations(&self, tenant_id: TenantId, search: &Search) -> Result<Found, Error> {
        let limit = usize::try_from(search.limit).unwrap_or(usize::MAX);
        let (began, mut many) = (Instant::now(), FIRST);
        let mut found = Found {
            next: search.before,
            ..Found::default()
        };
        loop {
            let looked_at = self.conversation_ids(tenant_id, search, found.next, many).await?;
            let step = Instant::now();
            found
                .conversations
                .extend(self.matching(&looked_at, &search.text).await?);
            let is_end = looked_at.len() < usize::try_from(many).unwrap_or(usize::MAX);
            let has_more = found.conversations.len() > limit || !is_end;
            if found.conversations.len() >= limit && has_more {
                found.conversations.truncate(limit);
                found.next = found.conversations.last().map(|last| last.id);
                return Ok(found);
            }
            found.next = looked_at.last().copied().filter(|_| !is_end);
            if is_end || began.elapsed() >= search.time {
                return Ok(found);
            }
            many = if step.elapsed() < search.time / 16 {
                MOST.min(many * 2)
            } else {
                (many / 2).max(1)
            };
        }
    }

    async fn conversation_ids(
        &self,
        tenant_id: TenantId,
        search: &Search,
        before: Option<ConversationId>,
        many: u32,
    ) -> Result<Vec<ConversationId>, Error> {
        let page = (before, many);
        let rows = self
            .page_of_conversations("id", tenant_id, &search.filter, page)
            .await?;
        Ok(rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?)
    }

    /// Those of these conversations that have a text in them, newest first.
    async fn matching(&self, ids: &[ConversationId], text: &str) -> Result<Vec<Conversation>, Error> {
        let rows = sqlx::query(
            "select * from conversations c where id = any($1) and deleted_at is null
                and (strpos(lower(title), lower($2)) > 0 or exists (select from messages m
                    where m.conversation_id = c.id and strpos(lower(m.said), lower($2)) > 0))
             order by id desc",
        )
        .bind(ids)
        .bind(text)
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(conversation).collect()
    }
}
