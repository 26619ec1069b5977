//! `GET /sandboxes`: what the workers' pools hold, and why jobs had to wait for one.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::store::sandboxes::HeldBack;
use common::store::workers::BELIEVED_FOR;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{List, Resource};
use crate::auth::Admin;
use crate::extract::Params;
use crate::problem::Problem;
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(list))
}

/// The sandboxes of one environment at one worker, a few seconds ago.
#[derive(Serialize, ToSchema)]
#[schema(as = Sandboxes)]
struct SandboxesView {
    worker_id: Uuid,
    worker: String,
    /// How the worker starts them.
    driver: String,
    environment: String,
    image: String,
    /// Ready.
    warm: u32,
    /// Of those, how many have Claude Code started and waiting.
    spares: u32,
    /// In use by a job.
    leased: u32,
    /// Kept for the conversation, or the user, that used them last.
    kept: u32,
    /// Being started.
    creating: u32,
    /// Being destroyed.
    retiring: u32,
    /// Jobs that wait for one.
    waiting: u32,
    /// How many jobs found nothing warm since the worker started, by the reason: `burst` (more came at once than are kept
    /// ready), `ceiling` (as many as allowed were in use), `failing` (starts fail), `unhealthy` (the warm one did not
    /// answer), `profile` (a larger one was asked for).
    cold_starts: BTreeMap<String, u64>,
    /// Why the last start failed, when none has succeeded since.
    last_error: Option<String>,
    /// What of the machine keeps more from starting: `disk` (it is full) or `engine` (it does not answer).
    held_back: Option<&'static str>,
    seen_at: DateTime<Utc>,
}

/// List the sandboxes, by worker and environment.
#[utoipa::path(get, path = "/sandboxes", tag = "operating", responses((status = 200, body = List<SandboxesView>)))]
async fn list(State(app): State<App>, _admin: Admin, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let since = app.clock().now() - BELIEVED_FOR;
    let mut all = Vec::new();
    for said in app.store().sandboxes(since).await? {
        all.extend(said.sandboxes.into_iter().map(|of| SandboxesView {
            worker_id: said.worker_id.into(),
            worker: said.worker.clone(),
            driver: said.driver.clone(),
            environment: of.environment,
            image: of.image,
            warm: of.warm,
            spares: of.spares,
            leased: of.leased,
            kept: of.kept,
            creating: of.creating,
            retiring: of.retiring,
            waiting: of.waiting,
            cold_starts: of.cold_starts,
            last_error: of.last_error,
            held_back: of.held_back.map(HeldBack::as_str),
            seen_at: said.seen_at,
        }));
    }
    Ok(Json(List::whole(all)).into_response())
}
