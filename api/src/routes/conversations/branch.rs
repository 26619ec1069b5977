//! Branches: going on from an earlier message, with another question or for another answer. Nothing is lost by it.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::ids::{ConversationId, JobId, MessageId};
use common::message::{Message, Part, Role};
use common::store::branch::BranchAt;
use common::store::conversations::Conversation;
use common::store::idempotency::Idempotency;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::messages::MessageDocument;
use super::said::{SaidPart, said};
use super::turns::{Taken, take};
use super::{ConversationView, read, write};
use crate::auth::Caller;
use crate::extract::{PathId, PathSteps, RawBody, ValidJson};
use crate::job::{JobFields, JobView, fits, split};
use crate::openapi::BASE;
use crate::problem::{Code, Document, Problem};
use crate::routes::created;
use crate::routes::jobs::idempotency::Keyed;
use crate::state::App;

/// Where a conversation is left.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BranchRequest {
    /// The last message that is repeated. Required.
    #[schema(required, nullable = false)]
    message_id: Option<String>,
    /// A title; that of the conversation.
    title: Option<String>,
}

/// What is said instead of a message, besides the fields of a job: `text` or `parts`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct EditFields {
    /// The message as one text.
    text: Option<String>,
    /// The message as typed parts: `text` and `file`.
    #[schema(value_type = Option<Vec<Object>>)]
    parts: Option<Vec<SaidPart>>,
}

/// The body of an edit.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: serde cannot refuse unknown fields through flattened structs"
)]
pub(super) struct EditRequest {
    #[serde(flatten)]
    edit: EditFields,
    #[serde(flatten)]
    job: JobFields,
}

/// A branch and the turn that was taken in it.
#[derive(Serialize)]
struct BranchedView<'a> {
    conversation: ConversationView,
    job: JobView<'a>,
    message: &'a Message,
}

/// A branch and the turn that was taken in it.
#[derive(ToSchema)]
#[schema(as = Branched)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct BranchedDocument {
    /// The new conversation.
    conversation: ConversationView,
    /// The job that answers.
    job: JobView<'static>,
    /// The user's message.
    message: MessageDocument,
}

/// Begin a conversation that repeats this one up to a message.
///
/// Its files are those that the conversation has now.
#[utoipa::path(post, path = "/conversations/{id}/branch", tag = "conversations", request_body = BranchRequest,
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 201, body = ConversationView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn branch(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    ValidJson(request): ValidJson<BranchRequest>,
) -> Result<Response, Problem> {
    write::check(request.title.as_ref(), None, None)?;
    let odd = |detail: &str| Problem::field("/message_id", detail.to_owned());
    let message_id = request.message_id.ok_or_else(|| odd("is required"))?;
    let message_id: MessageId = message_id.parse().map_err(|_garbage| odd("is no message's id"))?;
    read(&app, &caller, id).await?;
    // With the files as they are now: no version of before is kept.
    let (from, at) = ((caller.tenant_id(), id), BranchAt::Behind(message_id));
    let new = (ConversationId::new(), request.title.as_deref());
    let branch = app
        .store()
        .branch_conversation(from, at, new, app.clock().now())
        .await?;
    let branch = branch.ok_or_else(|| odd("is no message of this conversation"))?;
    Ok(created(
        &format!("/conversations/{}", branch.id),
        &ConversationView::from(branch),
    ))
}

/// Say something else instead of a message: in a branch, which is answered.
#[utoipa::path(post, path = "/conversations/{id}/messages/{message_id}/edit", tag = "conversations",
    request_body = EditRequest,
    params(("id" = String, Path, description = "The conversation"),
        ("message_id" = String, Path, description = "A message of the user"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = BranchedDocument),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn edit(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    steps: PathSteps,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    fits(&app, body.text(), "/text")?;
    let (edit, fields): (EditFields, JobFields) = split(body.text(), &["text", "parts"])?;
    let parts = said(edit.text, edit.parts, "")?;
    let asked = asked(&app, &caller, id, &steps).await?;
    if !asked.is_it {
        let detail = "only a message with which a user begins a turn can be edited";
        return Err(Problem::new(Code::Conflict, detail));
    }
    let idempotency = key.fingerprint(body.bytes());
    again(&app, &caller, &asked, parts, (fields, idempotency)).await
}

/// Answer again: in a branch, in which the same is asked.
///
/// The message is the user's or any of its answer.
#[utoipa::path(post, path = "/conversations/{id}/messages/{message_id}/regenerate", tag = "conversations",
    request_body = Option<JobFields>,
    params(("id" = String, Path, description = "The conversation"),
        ("message_id" = String, Path, description = "A message of the turn"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = BranchedDocument),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn regenerate(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    steps: PathSteps,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    let fields = if body.is_empty() {
        JobFields::default()
    } else {
        crate::extract::from_json(body.text(), "")?
    };
    let asked = asked(&app, &caller, id, &steps).await?;
    let parts = asked.message.parts.clone();
    let idempotency = key.fingerprint(body.bytes());
    again(&app, &caller, &asked, parts, (fields, idempotency)).await
}

/// A message of a conversation that a path names.
struct Asked {
    conversation: Conversation,
    /// The user's message of its turn.
    message: Message,
    /// Whether that is the one that is named.
    is_it: bool,
}

async fn asked(app: &App, caller: &Caller, id: ConversationId, steps: &PathSteps) -> Result<Asked, Problem> {
    let absent = || Problem::not_found("message");
    let message_id: MessageId = steps.get("message_id").parse().map_err(|_garbage| absent())?;
    let conversation = read(app, caller, id).await?;
    let asked = app.store().asked_message(id, message_id).await?;
    let (message, is_it) = asked.filter(|(asked, _)| asked.role == Role::User).ok_or_else(absent)?;
    Ok(Asked {
        conversation,
        message,
        is_it,
    })
}

/// Takes a turn in a branch before the turn of a message.
async fn again(
    app: &App,
    caller: &Caller,
    asked: &Asked,
    parts: Vec<Part>,
    (fields, idempotency): (JobFields, Option<Idempotency>),
) -> Result<Response, Problem> {
    let message = Message::new(Role::User, parts, app.clock().now());
    let place = (&asked.conversation, Some(asked.message.id));
    let taken = take(app, caller, place, message, (fields, false), idempotency).await?;
    let (job, message) = match &taken {
        Taken::New(job, message) => (JobView::accepted(job), message),
        Taken::Before(job, message) => (JobView::new(job), message),
    };
    let branch = taken
        .conversation_id()
        .ok_or_else(|| Problem::not_found("conversation"))?;
    let conversation = read(app, caller, branch).await?;
    Ok(answer(taken.job_id(), conversation, job, message))
}

fn answer(job_id: JobId, conversation: Conversation, job: JobView<'_>, message: &Message) -> Response {
    let view = BranchedView {
        conversation: ConversationView::from(conversation),
        job,
        message,
    };
    let location = format!("{BASE}/jobs/{job_id}");
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view)).into_response()
}
