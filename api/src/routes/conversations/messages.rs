//! The messages of a conversation.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::ids::ConversationId;
use common::message::Message;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::read;
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

/// One message of a conversation.
#[derive(ToSchema)]
#[schema(as = Message)]
#[expect(dead_code, reason = "only its schema is used; the type itself is common's")]
pub(in crate::routes) struct MessageDocument {
    id: Uuid,
    /// `user` or `assistant`.
    role: String,
    /// Typed parts: `text`, `reasoning`, `tool_call`, `tool_result`, `file`, `status`.
    parts: Vec<Value>,
    /// The job that wrote it; `null` for what a user sent.
    job_id: Option<Uuid>,
    /// What the model call behind it used.
    usage: Option<Value>,
    created_at: chrono::DateTime<chrono::Utc>,
}

/// List a conversation's messages, the oldest first.
#[utoipa::path(get, path = "/conversations/{id}/messages", tag = "conversations",
    params(("id" = String, Path, description = "The conversation"), ("limit" = Option<u32>, Query, description = "1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<MessageDocument>), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn messages(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit();
    let after = params
        .cursor::<Uuid>()
        .and_then(|cursor| u64::try_from(cursor.as_u128()).ok());
    params.finish()?;
    read(&app, &caller, id).await?;
    let messages = app.store().messages(id, after.unwrap_or(0), limit + 1).await?;
    let place = |(position, _): &(u64, Message)| Uuid::from_u128((*position).into());
    Ok(Json(List::page(messages, limit, place, |(_, message)| message)).into_response())
}
