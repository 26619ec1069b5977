//! Beginning, changing and deleting conversations.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use common::agent::AgentDefinition;
use common::ids::ConversationId;
use common::store::conversations::{Conversation, ConversationPatch};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::ConversationView;
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::job::{AgentRef, is_short_text, metadata_faults};
use crate::problem::{Document, FieldError, Problem};
use crate::routes::created;
use crate::routes::jobs::cancel::cancel_one;
use crate::state::App;

/// A conversation to begin: with `agent_id` or `agent`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConversationRequest {
    /// The saved agent that answers, in its current version at each turn.
    agent_id: Option<String>,
    /// The agent that answers, where it is not a saved one.
    agent: Option<AgentDefinition>,
    /// A title, at most 500 characters; the beginning of the first message where none is given.
    title: Option<String>,
    /// The submitter's own notes: at most 64 keys and 16 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// The submitter's own name for its user.
    user_id: Option<String>,
}

/// What may be changed; what is absent stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConversationChange {
    /// A title, at most 500 characters.
    title: Option<String>,
    /// The submitter's own notes: they replace those before.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

pub(super) fn check(
    title: Option<&String>,
    metadata: Option<&Map<String, Value>>,
    user: Option<&String>,
) -> Result<(), Problem> {
    let mut errors: Vec<FieldError> = metadata.into_iter().flat_map(metadata_faults).collect();
    if title.is_some_and(|title| title.contains('\0') || title.chars().count() > 500) {
        errors.push(FieldError::body("/title", "is at most 500 characters without NUL"));
    }
    if user.is_some_and(|user| !is_short_text(user)) {
        errors.push(FieldError::body("/user_id", "is 1 to 200 characters without NUL"));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(errors))
    }
}

/// Begin a conversation.
#[utoipa::path(post, path = "/conversations", tag = "conversations", request_body = ConversationRequest,
    responses(
        (status = 201, body = ConversationView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<ConversationRequest>,
) -> Result<Response, Problem> {
    check(
        request.title.as_ref(),
        request.metadata.as_ref(),
        request.user_id.as_ref(),
    )?;
    let agent = AgentRef {
        agent_id: request.agent_id,
        agent: request.agent,
    }
    .resolve(&app, &caller, "")
    .await?;
    let now = app.clock().now();
    let conversation = Conversation {
        id: ConversationId::new(),
        tenant_id: caller.tenant_id(),
        agent_id: agent.link.map(|(id, _)| id),
        agent: agent.link.is_none().then_some(agent.definition),
        title: request.title.unwrap_or_default(),
        metadata: request.metadata.unwrap_or_default(),
        user_id: request.user_id,
        active_job_id: None,
        branched_from: None,
        position: 0,
        created_at: now,
        updated_at: now,
    };
    app.store().insert_conversation(&conversation).await?;
    Ok(created(
        &format!("/conversations/{}", conversation.id),
        &ConversationView::from(conversation),
    ))
}

/// Change a conversation's title or notes.
#[utoipa::path(patch, path = "/conversations/{id}", tag = "conversations", request_body = ConversationChange,
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 200, body = ConversationView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    ValidJson(change): ValidJson<ConversationChange>,
) -> Result<Response, Problem> {
    check(change.title.as_ref(), change.metadata.as_ref(), None)?;
    let patch = ConversationPatch {
        title: change.title,
        metadata: change.metadata,
    };
    let changed = app
        .store()
        .update_conversation(caller.tenant_id(), id, &patch, app.clock().now())
        .await?;
    let changed = changed.ok_or_else(|| Problem::not_found("conversation"))?;
    Ok(Json(ConversationView::from(changed)).into_response())
}

/// Delete a conversation, cancel its turns, and forget everything that was said in it.
///
/// It is gone for readers at once; its messages, its jobs' input, results, logs and journals are removed when its last turn
/// has stopped. What its turns used stays counted.
#[utoipa::path(delete, path = "/conversations/{id}", tag = "conversations",
    params(("id" = String, Path, description = "The conversation")),
    responses((status = 204), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
) -> Result<Response, Problem> {
    let is_deleted = app
        .store()
        .delete_conversation(caller.tenant_id(), id, app.clock().now())
        .await?;
    let open = app.store().open_turns(caller.tenant_id(), id).await?;
    // Of one that was deleted by a call that came no further there may be turns to stop.
    if !is_deleted && open.is_empty() {
        return Err(Problem::not_found("conversation"));
    }
    for job_id in open {
        cancel_one(&app, &caller, job_id).await?;
    }
    // It is deleted, whatever becomes of this: the scheduler forgets those that it cannot, or whose turns are under way.
    if let Err(error) = app.store().forget_conversation(id, app.clock().now()).await {
        tracing::warn!(%error, conversation_id = %id, "what was said in a deleted conversation is forgotten later");
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
