//! Whether the process is alive, whether it can do its work, and what it says of itself.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::problem::{Code, Problem};
use crate::state::App;

/// How long a dependency may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(alive))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .route("/openapi.json", axum::routing::get(open_api))
        .route("/docs", axum::routing::get(docs))
        .route("/", axum::routing::get(landing))
}

/// What a health check answers.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok` or `degraded`.
    status: &'static str,
    /// Whether Postgres answers and commits go through: without it nothing is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<&'static str>,
    /// Whether Redis takes writes: without it jobs are accepted and start later.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
    /// Where the worker and the scheduler are parts of this process: what of them makes no progress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stalled: Vec<String>,
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()), responses((status = 200, body = Health)))]
async fn alive() -> Json<Health> {
    Json(Health {
        status: "ok",
        postgres: None,
        redis: None,
        stalled: Vec::new(),
    })
}

/// Jobs are accepted: the tables are there, the configured key is known, and a commit went through just now. Redis being away degrades and does not fail
/// this; where worker and scheduler are parts of the process, they must make progress.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health)))]
async fn ready(State(app): State<App>) -> Response {
    let commits = async {
        let probe = async {
            // Without its tables nothing can be accepted, however well Postgres answers; and until the configured key is
            // known nothing of its holder's.
            app.is_prepared()
                && app.store().is_migrated().await.is_ok_and(|is_migrated| is_migrated)
                && app.submitter().probe().await.is_ok()
        };
        tokio::time::timeout(PATIENCE, probe).await.is_ok_and(|is_well| is_well)
    };
    let answers = async {
        tokio::time::timeout(PATIENCE, app.queue().probe())
            .await
            .is_ok_and(|probe| probe.is_ok())
    };
    let (commits, answers) = tokio::join!(commits, answers);
    let stopping = app.stopping().is_cancelled();
    let stalled: Vec<String> = app.beside().iter().flat_map(stalled).collect();
    let word = |is_well| if is_well { "ok" } else { "unavailable" };
    let health = Health {
        status: if commits && answers && !stopping && stalled.is_empty() {
            "ok"
        } else {
            "degraded"
        },
        postgres: Some(word(commits)),
        redis: Some(word(answers)),
        stalled,
    };
    let status = if commits && !stopping && health.stalled.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health)).into_response()
}

fn stalled((part, health): &(&'static str, common::health::Health)) -> Vec<String> {
    let stalled = health.report().stalled().into_iter();
    stalled.map(|name| format!("{part}: {name}")).collect()
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, body = String, content_type = "text/plain; version=0.0.4")))]
async fn metrics(State(app): State<App>) -> Response {
    let Some(handle) = app.metrics() else {
        return Problem::new(Code::Unavailable, "this process records no metrics").into_response();
    };
    metrics::gauge!("hothouse_http_followed_jobs")
        .set(f64::from(u32::try_from(app.hub().followed()).unwrap_or(u32::MAX)));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render()).into_response()
}

async fn open_api() -> Response {
    Json(crate::openapi::document()).into_response()
}

async fn docs() -> Html<String> {
    Html(crate::openapi::html())
}

async fn landing() -> Html<&'static str> {
    Html(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Hothouse</title>\
         <body style=\"font:16px/1.5 system-ui;max-width:40rem;margin:4rem auto;padding:0 1rem\">\
         <h1>Hothouse</h1><p>Chat turns and agent executions as durable jobs, in warm, sealed sandboxes.</p>\
         <ul><li><a href=\"/docs\">The API</a></li><li><a href=\"/openapi.json\">OpenAPI document</a></li>\
         <li><a href=\"/readyz\">Health</a></li><li><a href=\"/metrics\">Metrics</a></li></ul></body></html>",
    )
}
