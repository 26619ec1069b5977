//! `GET /jobs`, `GET /jobs/{id}` and its attempts.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::{Job, JobState, Kind};
use common::store::jobs::JobDetail;
use common::store::usage::Totals;
use tokio::time::Instant;

use super::filter::{self, ListQuery};
use super::{to_json, waiting};
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::job::{AttemptView, JobView};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

/// Reads right after each other that a wait may make before it slows down: a job that prints much is hinted at often.
const QUICK_READS: u32 = 6;
/// Time between two reads of a wait that has slowed down.
const SLOW_READ: Duration = Duration::from_millis(100);

/// List jobs, newest first.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(ListQuery),
    responses(
        (status = 200, body = List<JobView<'static>>),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let filter = filter::from_params(&mut params);
    let (limit, before) = (params.limit(), params.cursor::<JobId>());
    params.finish()?;
    let jobs = app.store().list(caller.tenant_id(), &filter, before, limit + 1).await?;
    let more = jobs.len() > limit as usize;
    let usage = metered(&app, &jobs).await?;
    let view = |job| JobView::new(job).metered(usage.get(&job.id));
    let data: Vec<JobView<'_>> = jobs.iter().take(limit as usize).map(view).collect();
    let last = jobs.get((limit as usize).saturating_sub(1)).filter(|_| more);
    let next_cursor = last.map(|job| crate::extract::Cursor::encode(job.id));
    Ok(Json(List { data, next_cursor }).into_response())
}

/// Read a job.
///
/// With `wait` it answers as soon as the job ends, or when the time is over, whichever is first.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs",
    params(("id" = String, Path, description = "The job"),
        ("wait" = Option<String>, Query, description = "How long to wait for its end, such as `30s`; at most 60s")),
    responses(
        (status = 200, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let max = app.config().http.wait_max;
    let expected = format!("a duration of at most {}, such as 30s", humantime::format_duration(max));
    let wait = params.read_as("wait", &expected, |text| {
        humantime::parse_duration(text).ok().filter(|wait| *wait <= max)
    });
    params.finish()?;
    let detail = match wait {
        Some(wait) if !wait.is_zero() => ended(&app, &caller, id, wait).await?,
        _ => read(&app, &caller, id).await?,
    };
    let waiting_for = waiting::reason(&app, &detail.job).await;
    let usage = metered(&app, std::slice::from_ref(&detail.job)).await?;
    let body = to_json(&JobView::detailed(&detail, waiting_for).metered(usage.get(&id)));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// What calls of models used, of those jobs that make any.
async fn metered(app: &App, jobs: &[Job]) -> Result<HashMap<JobId, Totals>, Problem> {
    let calls = |job: &&Job| matches!(job.kind, Kind::AgentRun | Kind::ChatTurn) && job.attempt > 0;
    let ids: Vec<JobId> = jobs.iter().filter(calls).map(|job| job.id).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(app.store().usage_of_jobs(&ids).await?)
}

/// The caller's job.
pub(crate) async fn read(app: &App, caller: &Caller, id: JobId) -> Result<JobDetail, Problem> {
    app.store()
        .job(caller.tenant_id(), id)
        .await?
        .ok_or_else(|| Problem::not_found("job"))
}

/// The job when it has ended, or as it is when the time is over or the process stops.
async fn ended(app: &App, caller: &Caller, id: JobId, wait: Duration) -> Result<JobDetail, Problem> {
    let deadline = Instant::now() + wait;
    let mut follower = app.hub().follow(id);
    let mut reads = 0;
    loop {
        follower.told();
        let detail = read(app, caller, id).await?;
        if detail.job.state.is_terminal() || Instant::now() >= deadline || app.stopping().is_cancelled() {
            return Ok(detail);
        }
        reads += 1;
        if reads > QUICK_READS {
            tokio::time::sleep_until((Instant::now() + SLOW_READ).min(deadline)).await;
        }
        let pause = app.hub().patience(app.config().http.heartbeat);
        tokio::select! {
            () = follower.woken() => {}
            () = app.stopping().cancelled() => {}
            () = tokio::time::sleep_until((Instant::now() + pause).min(deadline)) => {}
        }
    }
}

/// List a job's attempts.
#[utoipa::path(get, path = "/jobs/{id}/attempts", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses(
        (status = 200, body = List<AttemptView<'static>>),
        (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn attempts(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Response, Problem> {
    let detail = read(&app, &caller, id).await?;
    let ended = app.store().attempts(id).await?;
    let mut data: Vec<AttemptView<'_>> = ended.iter().map(AttemptView::ended).collect();
    if let JobState::Running {
        attempt,
        worker_id,
        started_at,
    } = detail.job.state
        && ended.iter().all(|ended| ended.attempt != attempt)
    {
        data.push(AttemptView::running(attempt, worker_id, started_at));
    }
    Ok(Json(List::whole(data)).into_response())
}
