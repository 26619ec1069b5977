//! `/approvals`: tool calls that run only when a person says so.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::{ApprovalId, ConversationId, JobId};
use common::job::StateName;
use common::job::approval::ApprovalState;
use common::queue::Dispatch;
use common::store::approvals::{Answer, Answered, Approval, ApprovalFilter};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{List, Resource};
use crate::auth::Caller;
use crate::extract::{Params, PathId, ValidJson};
use crate::problem::{Code, Document, Problem};
use crate::state::App;

/// Longest comment, bytes.
const COMMENT_MAX: usize = 10_000;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(list)).routes(routes!(get, answer))
}

/// A question to a person: may this tool run?
#[derive(Serialize, ToSchema)]
#[schema(as = Approval)]
struct ApprovalView {
    id: Uuid,
    /// `open`, `approved`, `denied`, `expired` (nobody answered in time: denied) or `withdrawn` (the job ended).
    state: ApprovalState,
    /// The job that waits.
    job_id: Uuid,
    conversation_id: Option<Uuid>,
    agent_id: Option<Uuid>,
    /// The model's name for the call.
    tool_call_id: String,
    /// The tool.
    name: String,
    /// What it would be called with.
    #[schema(value_type = Object)]
    input: Value,
    /// What the person said to the model.
    comment: Option<String>,
    created_at: DateTime<Utc>,
    /// When the answer is no, unless there is one.
    deadline: DateTime<Utc>,
    answered_at: Option<DateTime<Utc>>,
    /// The API key that answered.
    answered_by: Option<Uuid>,
}

impl From<Approval> for ApprovalView {
    fn from(approval: Approval) -> Self {
        Self {
            id: approval.id.into(),
            state: approval.state,
            job_id: approval.job_id.into(),
            conversation_id: approval.conversation_id.map(Uuid::from),
            agent_id: approval.agent_id.map(Uuid::from),
            tool_call_id: approval.tool_call_id,
            name: approval.tool,
            input: approval.input,
            comment: approval.comment,
            created_at: approval.created_at,
            deadline: approval.deadline,
            answered_at: approval.answered_at,
            answered_by: approval.answered_by.map(Uuid::from),
        }
    }
}

/// A person's answer.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct AnswerRequest {
    /// Whether the tool may run. Required.
    #[schema(required, nullable = false)]
    approve: Option<bool>,
    /// What the model is told besides when it may not, at most 10,000 bytes.
    comment: Option<String>,
}

/// List approvals, newest first.
#[utoipa::path(get, path = "/approvals", tag = "approvals",
    params(("state" = Option<String>, Query, description = "`open`, `approved`, `denied`, `expired` or `withdrawn`"),
        ("job_id" = Option<String>, Query, description = "Of this job"),
        ("conversation_id" = Option<String>, Query, description = "Of turns of this conversation"),
        ("limit" = Option<u32>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<ApprovalView>)))]
async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let filter = ApprovalFilter {
        state: params.read_as("state", "a state of approvals", ApprovalState::parse),
        job_id: params.parsed::<JobId>("job_id", "an id"),
        conversation_id: params.parsed::<ConversationId>("conversation_id", "an id"),
    };
    let (limit, before) = (params.limit(), params.cursor::<ApprovalId>());
    params.finish()?;
    let found = app
        .store()
        .approvals(caller.tenant_id(), &filter, before, limit + 1, app.clock().now())
        .await?;
    Ok(Json(List::page(found, limit, |one| one.id, ApprovalView::from)).into_response())
}

/// Read an approval.
#[utoipa::path(get, path = "/approvals/{id}", tag = "approvals",
    params(("id" = String, Path, description = "The approval")),
    responses((status = 200, body = ApprovalView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, caller: Caller, PathId(id): PathId<ApprovalId>) -> Result<Response, Problem> {
    let found = app.store().approval(caller.tenant_id(), id, app.clock().now()).await?;
    let found = found.ok_or_else(|| Problem::not_found("approval"))?;
    Ok(Json(ApprovalView::from(found)).into_response())
}

/// Answer an approval.
///
/// The job goes on when all that it asks is answered. The same answer twice is one answer; another one is a conflict. So is one
/// that comes while the job looks at another's; that one has a `Retry-After`.
#[utoipa::path(post, path = "/approvals/{id}", tag = "approvals", request_body = AnswerRequest,
    params(("id" = String, Path, description = "The approval")),
    responses(
        (status = 200, body = ApprovalView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn answer(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ApprovalId>,
    ValidJson(request): ValidJson<AnswerRequest>,
) -> Result<Response, Problem> {
    let is_approved = request
        .approve
        .ok_or_else(|| Problem::field("/approve", "is required"))?;
    let odd = |comment: &String| comment.len() > COMMENT_MAX || comment.contains('\0');
    if request.comment.as_ref().is_some_and(odd) {
        let detail = format!("is at most {COMMENT_MAX} bytes without NUL");
        return Err(Problem::field("/comment", detail));
    }
    let answer = Answer {
        is_approved,
        comment: request.comment,
        by: Some(caller.key_id),
        at: app.clock().now(),
    };
    let answered = app.store().answer_approval(caller.tenant_id(), id, &answer).await?;
    match answered.ok_or_else(|| Problem::not_found("approval"))? {
        Answered::Taken(approval, job) => {
            if job.state.name() == StateName::Queued {
                app.submitter().dispatch(vec![Dispatch::from_job(&job)]);
            }
            app.hub().changed(job.id);
            Ok(Json(ApprovalView::from(*approval)).into_response())
        }
        Answered::Closed(approval) => {
            let wanted = if is_approved {
                ApprovalState::Approved
            } else {
                ApprovalState::Denied
            };
            if approval.state == wanted {
                return Ok(Json(ApprovalView::from(*approval)).into_response());
            }
            let detail = format!("it is not open any more: {}", approval.state.as_str());
            Err(Problem::new(Code::Conflict, detail))
        }
        Answered::Later => {
            let detail = "its job just looks at what was answered: answer again in a moment";
            Err(Problem::new(Code::Conflict, detail).with_retry_after(Duration::from_secs(1)))
        }
    }
}
