//! `POST /jobs/{id}/messages`: a word to a turn or a run that is under way.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use common::agent::{AgentDefinition, Harness};
use common::ids::JobId;
use common::job::Kind;
use common::message::{Message, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::problem::{Code, Document, Problem};
use crate::routes::conversations::{MessageDocument, SaidPart, said};
use crate::state::App;

/// What is said: `text` or `parts`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SteeringRequest {
    /// The message as one text.
    text: Option<String>,
    /// The message as typed parts: `text` and `file`.
    #[schema(value_type = Option<Vec<Object>>)]
    parts: Option<Vec<SaidPart>>,
}

/// A message that was taken.
#[derive(Serialize)]
struct SteeringView<'a> {
    message: &'a Message,
}

/// A message that was taken.
#[derive(ToSchema)]
#[schema(as = Steering)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct SteeringDocument {
    /// The message.
    message: MessageDocument,
}

/// The part of the input that says how the job is run.
#[derive(Deserialize)]
struct WithAgent {
    agent: AgentDefinition,
}

/// Say something to a turn or a run that is under way.
///
/// The model is shown it before its next step, and answers it before the turn ends. What comes too late for that is added
/// to the conversation when the turn ends.
#[utoipa::path(post, path = "/jobs/{id}/messages", tag = "jobs", request_body = SteeringRequest,
    params(("id" = String, Path, description = "A turn of a conversation, or a run of an agent")),
    responses(
        (status = 202, body = SteeringDocument),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn steer(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    ValidJson(request): ValidJson<SteeringRequest>,
) -> Result<Response, Problem> {
    let message = Message::new(Role::User, said(request.text, request.parts, "")?, app.clock().now());
    let detail = super::read_job(&app, &caller, id).await?;
    let refused = |detail: &'static str| Problem::new(Code::Conflict, detail);
    if !matches!(detail.job.kind, Kind::ChatTurn | Kind::AgentRun) {
        return Err(refused("only a turn or a run of an agent hears messages"));
    }
    let harness = serde_json::from_slice::<WithAgent>(&detail.input).map(|input| input.agent.harness);
    if !matches!(harness, Ok(Harness::Chat | Harness::Native | Harness::ClaudeCode)) {
        return Err(refused(
            "an agent of the harness command reads its prompt once and hears nothing while it runs: send the next turn",
        ));
    }
    if !app.store().steer(caller.tenant_id(), id, &message).await? {
        return Err(refused("the job has ended"));
    }
    let view = SteeringView { message: &message };
    Ok((StatusCode::ACCEPTED, Json(view)).into_response())
}
