//! `/jobs`: submitting, reading, cancelling, repeating.

mod artifacts;
mod batch;
pub(crate) mod cancel;
mod egress;
mod filter;
pub(crate) mod idempotency;
mod messages;
mod read;
mod redrive;
pub(crate) mod strategy;
mod submit;
mod waiting;

use axum::http::header;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use serde::Serialize;
use utoipa::OpenApi;
use utoipa_axum::routes;

use crate::job::JobView;
use crate::openapi::BASE;
use crate::routes::Resource;

/// Described apart from its route: `OpenAPI` has no word for a path of several parts.
#[derive(OpenApi)]
#[openapi(paths(artifacts::get))]
struct Artifacts;

pub(super) fn routes() -> Resource {
    Resource::described(Artifacts::openapi())
        .routes(routes!(submit::submit, read::list))
        .routes(routes!(batch::submit_batch))
        .routes(routes!(cancel::cancel_many))
        .routes(routes!(redrive::redrive_many))
        .routes(routes!(read::get))
        .routes(routes!(read::attempts))
        .routes(routes!(egress::list))
        .routes(routes!(artifacts::list))
        .route("/jobs/{id}/artifacts/{*path}", axum::routing::get(artifacts::get))
        .routes(routes!(cancel::cancel))
        .routes(routes!(redrive::redrive))
        .routes(routes!(messages::steer))
}

/// 202 with where the job is.
pub(crate) fn accepted(id: JobId, body: Vec<u8>) -> Response {
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::from_str(&format!("{BASE}/jobs/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    response
}

pub(crate) use read::read as read_job;

/// JSON of a job, made before the job is given away.
pub(crate) fn to_json(view: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(view).unwrap_or_default()
}

/// 202 with a job that is in Postgres.
pub(crate) fn accepted_job(job: &common::job::Job) -> Response {
    accepted(job.id, to_json(&JobView::new(job)))
}
