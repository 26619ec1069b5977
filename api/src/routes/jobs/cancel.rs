//! Asking jobs to stop.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::cancel::OPEN;
use common::ids::{JobId, TenantId};
use common::job::{Job, StateName};
use common::store::list::Filter;
use common::store::wait::Orphaned;
use common::turn;
use serde::Serialize;
use utoipa::ToSchema;

use super::accepted_job;
use super::filter::ManyRequest;
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::job::JobView;
use crate::problem::{Document, Problem};
use crate::state::App;

/// Counting stops here.
const COUNT_MAX: u64 = 1_000_000;

/// How many jobs a call acted on.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the names are those of the wire")]
pub(super) struct Matched {
    /// How many jobs this call acted on, or would have; a dry run counts up to 1,000,000.
    pub(super) matched: u64,
    /// Whether there are more, because its time was over: the same call goes on.
    pub(super) more: bool,
    /// Jobs accepted before this moment are meant: give it to the next call to go on with the same.
    pub(super) created_before: Option<DateTime<Utc>>,
}

/// Cancel a job.
///
/// One that nobody runs is cancelled at once; one that runs stops within a second; one that has ended stays as it is. The
/// jobs of a group are cancelled with it.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses(
        (status = 202, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Response, Problem> {
    let job = cancel_one(&app, &caller, id)
        .await?
        .ok_or_else(|| Problem::not_found("job"))?;
    Ok(accepted_job(&job))
}

/// Commits the request, then tells Redis, which may be away.
pub(crate) async fn cancel_one(app: &App, caller: &Caller, id: JobId) -> Result<Option<Job>, Problem> {
    cancel_of(app, caller.tenant_id(), id).await
}

/// The same for a job of a tenant that is not the caller.
pub(super) async fn cancel_of(app: &App, tenant_id: TenantId, id: JobId) -> Result<Option<Job>, Problem> {
    let Some(job) = app.store().cancel(tenant_id, id, app.clock().now()).await? else {
        return Ok(None);
    };
    if job.cancel_requested_at.is_some() {
        let told = app
            .queue()
            .cancel(job.tenant_id, job.id, job.seq, job.state.is_terminal())
            .await;
        if let Err(error) = told {
            tracing::debug!(%id, %error, "redis does not know of a cancelled job yet");
        }
        app.hub().changed(id);
        if job.state.is_terminal() && job.conversation_id.is_some() {
            turn::dispatch_next(app.store(), app.queue(), &[id]).await;
        }
        if job.state.is_terminal() && job.waits_for.is_some() {
            let orphaned = Orphaned {
                tenant_id: job.tenant_id,
                parent_id: id,
            };
            // The scheduler finds those that this call does not. Few jobs have any, and all would carry its size.
            Box::pin(app.canceller().orphans(orphaned, app.clock())).await?;
        }
    }
    Ok(Some(job))
}

/// Cancel every job that matches.
///
/// One call goes on for some seconds, job after job in batches; when it answers `more`, the same call goes on where it
/// ended, for what it has cancelled does not match any more. Jobs that run are asked to stop, once.
#[utoipa::path(post, path = "/jobs/cancel", tag = "jobs", request_body = ManyRequest,
    responses(
        (status = 200, body = Matched),
        (status = 422, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn cancel_many(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<ManyRequest>,
) -> Result<Response, Problem> {
    let filter = request.filter(&OPEN, app.clock().now())?;
    let states = filter.state.map_or_else(|| OPEN.to_vec(), |state| vec![state]);
    if request.dry_run {
        return count(&app, &caller, &filter, &states).await;
    }
    let budget = app.config().submit.many_budget;
    let progress = app
        .canceller()
        .matching(caller.tenant_id(), &filter, &states, app.clock(), Some(budget))
        .await?;
    let matched = Matched {
        matched: progress.matched,
        more: progress.more,
        created_before: filter.created_before,
    };
    Ok(Json(matched).into_response())
}

/// How many jobs a call would act on.
pub(super) async fn count(
    app: &App,
    caller: &Caller,
    filter: &Filter,
    states: &[StateName],
) -> Result<Response, Problem> {
    let mut matched = 0;
    for state in states {
        matched += app
            .store()
            .count_matching(caller.tenant_id(), filter, *state, COUNT_MAX)
            .await?;
    }
    Ok(Json(Matched {
        matched: matched.min(COUNT_MAX),
        more: matched >= COUNT_MAX,
        created_before: filter.created_before,
    })
    .into_response())
}
