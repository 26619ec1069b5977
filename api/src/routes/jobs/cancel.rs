//! Asking jobs to stop.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::{Job, StateName};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::accepted_job;
use super::filter::ManyRequest;
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::job::JobView;
use crate::problem::{Document, Problem};
use crate::state::App;

/// Most jobs that one call acts on.
pub(super) const MANY_MAX: usize = 10_000;
/// Jobs that are acted on at once.
pub(super) const MANY_PARALLEL: usize = 8;
/// Jobs that are looked up at once.
const PAGE: u32 = 500;

const OPEN: [StateName; 5] = [
    StateName::Scheduled,
    StateName::Queued,
    StateName::Running,
    StateName::Waiting,
    StateName::Retrying,
];

/// How many jobs a call acted on.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Matched {
    /// How many jobs matched and were acted on, or would have been.
    pub(super) matched: usize,
    /// Whether there may be more: one call acts on 10,000 at most.
    pub(super) more: bool,
}

/// Cancel a job.
///
/// One that nobody runs is cancelled at once; one that runs stops within a second; one that has ended stays as it is.
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
    let Some(job) = app.store().cancel(caller.tenant_id(), id, app.clock().now()).await? else {
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
        app.hub().hint(id);
    }
    Ok(Some(job))
}

/// Cancel every job that matches.
#[utoipa::path(post, path = "/jobs/cancel", tag = "jobs", request_body = ManyRequest,
    responses(
        (status = 200, body = Matched),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn cancel_many(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<ManyRequest>,
) -> Result<Response, Problem> {
    let filter = request.filter(&OPEN)?;
    let states = filter.state.map_or_else(|| OPEN.to_vec(), |state| vec![state]);
    let (ids, more) = matching(&app, &caller, &filter, &states).await?;
    if !request.dry_run {
        stream::iter(ids.clone())
            .map(|id| cancel_one(&app, &caller, id))
            .buffer_unordered(MANY_PARALLEL)
            .try_for_each(async |_| Ok(()))
            .await?;
    }
    Ok(Json(Matched {
        matched: ids.len(),
        more,
    })
    .into_response())
}

/// The jobs in one of `states` that match, oldest first, up to [`MANY_MAX`].
pub(super) async fn matching(
    app: &App,
    caller: &Caller,
    filter: &common::store::list::Filter,
    states: &[StateName],
) -> Result<(Vec<JobId>, bool), Problem> {
    let mut ids = Vec::new();
    for state in states {
        let filter = common::store::list::Filter {
            state: Some(*state),
            ..filter.clone()
        };
        let mut before = None;
        loop {
            let page = app.store().list(caller.tenant_id(), &filter, before, PAGE).await?;
            before = page.last().map(|job| job.id);
            ids.extend(page.iter().map(|job| job.id));
            if ids.len() >= MANY_MAX || page.len() < PAGE as usize {
                break;
            }
        }
    }
    let more = ids.len() >= MANY_MAX;
    ids.truncate(MANY_MAX);
    ids.sort_unstable();
    Ok((ids, more))
}
