//! Repeating finished jobs: a redrive is a new job that names the old one.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::spec::JobSpec;
use common::job::{Links, NewJob, StateName};
use common::store::insert::Submission;
use common::store::jobs::JobDetail;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::cancel::{MANY_PARALLEL, Matched, matching};
use super::filter::ManyRequest;
use super::{accepted, to_json};
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::job::JobView;
use crate::problem::{Code, Document, Problem};
use crate::state::App;

const ENDED: [StateName; 3] = [StateName::Failed, StateName::Cancelled, StateName::Succeeded];

/// Repeat a finished job.
///
/// The new job has the same input and settings, starts at once and names the old one as `redrive_of`.
#[utoipa::path(post, path = "/jobs/{id}/redrive", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses(
        (status = 202, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json")))]
pub(super) async fn redrive(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Response, Problem> {
    let old = super::read::read(&app, &caller, id).await?;
    if !old.job.state.is_terminal() {
        return Err(Problem::new(Code::Conflict, "the job has not ended"));
    }
    let job = repetition(&app, &caller, old);
    let (id, answer) = (job.id, to_json(&JobView::accepted(&job)));
    insert(&app, &caller, job).await?;
    Ok(accepted(id, answer))
}

async fn insert(app: &App, caller: &Caller, job: NewJob) -> Result<(), Problem> {
    let submission = Submission {
        tenant_id: caller.tenant_id(),
        jobs: vec![job],
        idempotency: None,
    };
    app.submitter().submit(submission).await.map(drop)
}

fn repetition(app: &App, caller: &Caller, old: JobDetail) -> NewJob {
    let JobDetail { job, input, .. } = old;
    NewJob {
        id: JobId::new(),
        tenant_id: job.tenant_id,
        class: job.class,
        spec: JobSpec {
            kind: job.kind,
            queue: job.queue,
            priority: job.priority,
            run_at: None,
            labels: job.labels,
            timeout: std::time::Duration::from_millis(job.timeout_ms),
            max_attempts: job.max_attempts,
            backoff: job.backoff,
            retry_on: job.retry_on,
            concurrency: job.concurrency,
            user_id: job.user_id,
            metadata: job.metadata,
        },
        input,
        created_at: app.clock().now(),
        api_key_id: Some(caller.key_id),
        links: Links {
            agent: job.agent_id.zip(job.agent_version),
            conversation_id: job.conversation_id,
            schedule_id: job.schedule_id,
            parent_id: None,
            redrive_of: Some(job.id),
        },
    }
}

/// Repeat every finished job that matches; without `state`, those that failed.
#[utoipa::path(post, path = "/jobs/redrive", tag = "jobs", request_body = ManyRequest,
    responses(
        (status = 200, body = Matched),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn redrive_many(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<ManyRequest>,
) -> Result<Response, Problem> {
    let filter = request.filter(&ENDED)?;
    let state = filter.state.unwrap_or(StateName::Failed);
    let (ids, more) = matching(&app, &caller, &filter, &[state]).await?;
    if !request.dry_run {
        stream::iter(ids.clone())
            .map(|id| redrive_one(&app, &caller, id))
            .buffer_unordered(MANY_PARALLEL)
            .try_for_each(async |()| Ok(()))
            .await?;
    }
    Ok(Json(Matched {
        matched: ids.len(),
        more,
    })
    .into_response())
}

async fn redrive_one(app: &App, caller: &Caller, id: JobId) -> Result<(), Problem> {
    match app.store().job(caller.tenant_id(), id).await? {
        Some(old) => insert(app, caller, repetition(app, caller, old)).await,
        None => Ok(()),
    }
}
