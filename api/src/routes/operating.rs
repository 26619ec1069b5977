//! Queues, workers and duties: what operates the system.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::WorkerId;
use common::job::exec::is_name;
use common::store::queues::QueueStatus;
use common::store::workers::{WorkerState, WorkerStatus};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::limits::RateView;
use super::{List, Resource};
use crate::auth::{Admin, Caller};
use crate::extract::{Params, PathId, PathSteps};
use crate::problem::{Document, Problem};
use crate::state::App;

/// A silent worker is shown for so long: whoever looks should see what died.
const SILENT_SHOWN: Duration = Duration::from_hours(1);

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(queues))
        .routes(routes!(queue, super::limits::update_queue))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(workers))
        .routes(routes!(drain))
        .routes(routes!(duties))
}

/// A queue, with the caller's jobs in it. Counts stop at 100,000.
#[derive(Serialize, ToSchema)]
#[schema(as = Queue)]
pub(super) struct QueueView {
    name: String,
    /// Since when nothing of it is given to workers.
    paused_at: Option<DateTime<Utc>>,
    /// Its share of the free slots relative to other queues.
    weight: u32,
    /// Jobs that may run at once, whosever they are; `null` is no limit.
    max_running: Option<u32>,
    /// Jobs that may start within a window; `null` is no limit.
    rate: Option<RateView>,
    queued: u64,
    running: u64,
    /// Those that run later, retries included.
    scheduled: u64,
}

impl From<QueueStatus> for QueueView {
    fn from(status: QueueStatus) -> Self {
        let QueueStatus {
            name,
            paused_at,
            settings,
            queued,
            running,
            scheduled,
        } = status;
        Self {
            name,
            paused_at,
            weight: settings.weight,
            max_running: settings.max_running,
            rate: settings.rate.map(RateView::new),
            queued,
            running,
            scheduled,
        }
    }
}

/// List the queues that have settings or jobs of the caller.
#[utoipa::path(get, path = "/queues", tag = "operating", responses((status = 200, body = List<QueueView>)))]
async fn queues(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let queues = app.store().queues(caller.tenant_id()).await?;
    Ok(Json(List::whole(queues.into_iter().map(QueueView::from).collect())).into_response())
}

pub(super) async fn read_queue(app: &App, caller: &Caller, name: &str) -> Result<QueueView, Problem> {
    if !is_name(name) {
        return Err(Problem::not_found("queue"));
    }
    let queues = app.store().queues(caller.tenant_id()).await?;
    let unused = || QueueView {
        name: name.to_owned(),
        paused_at: None,
        weight: 1,
        max_running: None,
        rate: None,
        queued: 0,
        running: 0,
        scheduled: 0,
    };
    Ok(queues
        .into_iter()
        .find(|queue| queue.name == name)
        .map_or_else(unused, QueueView::from))
}

/// Read a queue. Every name is a queue; one that was never used is empty.
#[utoipa::path(get, path = "/queues/{name}", tag = "operating", params(("name" = String, Path, description = "The queue")),
    responses((status = 200, body = QueueView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn queue(State(app): State<App>, caller: Caller, steps: PathSteps) -> Result<Response, Problem> {
    Ok(Json(read_queue(&app, &caller, steps.get("name")).await?).into_response())
}

/// Pause a queue: nothing of it is given to workers, for every tenant. What runs goes on.
#[utoipa::path(post, path = "/queues/{name}/pause", tag = "operating", params(("name" = String, Path, description = "The queue")),
    responses((status = 200, body = QueueView), (status = 403, body = Document, content_type = "application/problem+json")))]
async fn pause(State(app): State<App>, Admin(caller): Admin, steps: PathSteps) -> Result<Response, Problem> {
    set_paused(&app, &caller, steps.get("name"), true).await
}

/// Resume a queue.
#[utoipa::path(post, path = "/queues/{name}/resume", tag = "operating", params(("name" = String, Path, description = "The queue")),
    responses((status = 200, body = QueueView), (status = 403, body = Document, content_type = "application/problem+json")))]
async fn resume(State(app): State<App>, Admin(caller): Admin, steps: PathSteps) -> Result<Response, Problem> {
    set_paused(&app, &caller, steps.get("name"), false).await
}

async fn set_paused(app: &App, caller: &Caller, name: &str, paused: bool) -> Result<Response, Problem> {
    if !is_name(name) {
        return Err(Problem::not_found("queue"));
    }
    app.store().set_queue_paused(name, paused, app.clock().now()).await?;
    let all = app.store().paused_queues().await?;
    if let Err(error) = app.queue().set_paused(&all).await {
        tracing::debug!(%error, "redis does not know of a paused queue yet");
    }
    Ok(Json(read_queue(app, caller, name).await?).into_response())
}

/// A worker process that has not stopped in order and was heard of within an hour.
#[derive(Serialize, ToSchema)]
#[schema(as = Worker)]
struct WorkerView {
    id: Uuid,
    name: String,
    /// `live`; `stalled`, when a part of it makes no progress; `draining`; `silent`, when it was not heard of for 15 s.
    state: &'static str,
    version: String,
    /// Slots by class.
    slots: BTreeMap<String, u32>,
    labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    queues: Vec<String>,
    /// How it starts sandboxes.
    driver: String,
    started_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    /// Since when it claims nothing more.
    draining_at: Option<DateTime<Utc>>,
    /// Jobs that it runs.
    running: u64,
    /// Parts of it that made no progress when it was last heard of.
    stalled: Vec<String>,
}

impl WorkerView {
    fn new(status: WorkerStatus, now: DateTime<Utc>) -> Self {
        let state = match status.state(now) {
            WorkerState::Live => "live",
            WorkerState::Stalled => "stalled",
            WorkerState::Draining => "draining",
            WorkerState::Silent => "silent",
        };
        let WorkerStatus {
            worker,
            seen_at,
            draining_at,
            running,
            stalled,
        } = status;
        Self {
            id: worker.id.into(),
            name: worker.name,
            state,
            version: worker.version,
            slots: worker.slots,
            labels: worker.labels,
            queues: worker.queues,
            driver: worker.driver,
            started_at: worker.started_at,
            seen_at,
            draining_at,
            running,
            stalled,
        }
    }
}

/// List the workers.
#[utoipa::path(get, path = "/workers", tag = "operating", responses((status = 200, body = List<WorkerView>)))]
async fn workers(State(app): State<App>, _admin: Admin, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let now = app.clock().now();
    let workers = app.store().workers(now, SILENT_SHOWN).await?;
    let views = workers.into_iter().map(|status| WorkerView::new(status, now));
    Ok(Json(List::whole(views.collect())).into_response())
}

/// What became of a request to drain.
#[derive(Serialize, ToSchema)]
struct Draining {
    id: Uuid,
    draining: bool,
}

/// Drain a worker: it finishes what it holds and claims nothing more.
#[utoipa::path(post, path = "/workers/{id}/drain", tag = "operating", params(("id" = String, Path, description = "The worker")),
    responses((status = 202, body = Draining), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn drain(State(app): State<App>, _admin: Admin, PathId(id): PathId<WorkerId>) -> Result<Response, Problem> {
    if app.store().drain_worker(id, app.clock().now()).await? {
        Ok((
            StatusCode::ACCEPTED,
            Json(Draining {
                id: id.into(),
                draining: true,
            }),
        )
            .into_response())
    } else {
        Err(Problem::not_found("worker"))
    }
}

/// List the periodic duties and what each last did.
#[utoipa::path(get, path = "/duties", tag = "operating", responses((status = 200, body = List<Object>)))]
async fn duties(State(app): State<App>, _admin: Admin, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    Ok(Json(List::whole(app.store().duties().await?)).into_response())
}
