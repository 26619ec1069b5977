//! Conversations: messages in order, and turns that answer them.

mod branch;
mod export;
mod messages;
mod said;
mod turns;
mod write;

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::agent::AgentDefinition;
use common::ids::{AgentId, ConversationId};
use common::store::conversations::{Conversation, ConversationFilter};
use common::store::search::Search;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

pub(in crate::routes) use messages::MessageDocument;
pub(in crate::routes) use said::{SaidPart, said};
pub(in crate::routes) use turns::answering;

use super::usage::TotalsView;
use super::{List, Resource};
use crate::auth::Caller;
use crate::extract::{Cursor, Params, PathId};
use crate::problem::{Document, Problem};
use crate::state::App;

/// How long one page of a search goes on before it ends where it is.
const SEARCH_TIME: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(write::create, list))
        .routes(routes!(get, write::update, write::delete))
        .routes(routes!(messages::messages))
        .routes(routes!(branch::branch))
        .routes(routes!(branch::edit))
        .routes(routes!(branch::regenerate))
        .routes(routes!(export::export))
        .routes(routes!(turns::submit))
        .routes(routes!(turns::cancel))
}

/// A conversation without its messages.
#[derive(Serialize, ToSchema)]
#[schema(as = Conversation)]
struct ConversationView {
    id: Uuid,
    /// The saved agent that answers.
    agent_id: Option<Uuid>,
    /// The agent that answers, where it is not a saved one.
    agent: Option<AgentDefinition>,
    title: String,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
    /// The submitter's own name for its user.
    user_id: Option<String>,
    /// The turn under way.
    active_job_id: Option<Uuid>,
    /// The conversation whose beginning it repeats.
    branched_from: Option<BranchedFrom>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// Where a branch began.
#[derive(Serialize, ToSchema)]
struct BranchedFrom {
    conversation_id: Uuid,
    /// The message up to which it is repeated, or that was asked again.
    message_id: Uuid,
}

impl From<Conversation> for ConversationView {
    fn from(conversation: Conversation) -> Self {
        Self {
            id: conversation.id.into(),
            agent_id: conversation.agent_id.map(Uuid::from),
            agent: conversation.agent,
            title: conversation.title,
            metadata: conversation.metadata,
            user_id: conversation.user_id,
            active_job_id: conversation.active_job_id.map(Uuid::from),
            branched_from: conversation.branched_from.map(|(id, message_id)| BranchedFrom {
                conversation_id: id.into(),
                message_id: message_id.into(),
            }),
            created_at: conversation.created_at,
            updated_at: conversation.updated_at,
        }
    }
}

pub(in crate::routes) async fn read(app: &App, caller: &Caller, id: ConversationId) -> Result<Conversation, Problem> {
    let found = app.store().conversation(caller.tenant_id(), id).await?;
    found.ok_or_else(|| Problem::not_found("conversation"))
}

/// List conversations, newest first.
#[utoipa::path(get, path = "/conversations", tag = "conversations",
    params(("q" = Option<String>, Query, description = "With this text in the title or in a message. A page ends after two seconds: it may hold few or none, and `next_cursor` goes on"),
        ("agent_id" = Option<String>, Query, description = "Answered by this saved agent"),
        ("user_id" = Option<String>, Query, description = "Of this user"),
        ("limit" = Option<u32>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<ConversationView>)))]
async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let text = params.text("q");
    let filter = ConversationFilter {
        agent_id: params.parsed::<AgentId>("agent_id", "an id"),
        user_id: params.text("user_id"),
    };
    let (limit, before) = (params.limit(), params.cursor::<ConversationId>());
    params.finish()?;
    let page = match text {
        None => {
            let found = app
                .store()
                .conversations(caller.tenant_id(), &filter, before, limit + 1);
            List::page(found.await?, limit, |one| one.id, ConversationView::from)
        }
        Some(text) => {
            let search = Search {
                text,
                filter,
                before,
                limit,
                time: SEARCH_TIME,
            };
            let found = app.store().search_conversations(caller.tenant_id(), &search).await?;
            List {
                data: found.conversations.into_iter().map(ConversationView::from).collect(),
                next_cursor: found.next.map(Cursor::encode),
            }
        }
    };
    Ok(Json(page).into_response())
}

/// A conversation and what its turns used.
#[derive(Serialize, ToSchema)]
struct ConversationDetail {
    #[serde(flatten)]
    conversation: ConversationView,
    /// Of all its turns' calls of models.
    usage: TotalsView,
}

/// Read a conversation, and what its turns used.
#[utoipa::path(get, path = "/conversations/{id}", tag = "conversations",
    params(("id" = String, Path, description = "The conversation")),
    responses((status = 200, body = ConversationDetail), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, caller: Caller, PathId(id): PathId<ConversationId>) -> Result<Response, Problem> {
    let conversation = ConversationView::from(read(&app, &caller, id).await?);
    let usage = app.store().usage_of_conversation(id).await?.into();
    Ok(Json(ConversationDetail { conversation, usage }).into_response())
}
