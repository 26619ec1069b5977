//! `GET /jobs/{id}/artifacts/{path}`: the files that a job was asked to keep.

use axum::extract::{RawPathParams, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::objects::{self, artifact_key};
use serde::Deserialize;

use super::read;
use crate::auth::Caller;
use crate::extract::PathId;
use crate::problem::{Document, Problem};
use crate::state::App;

/// The part of an `exec` result that names what was kept.
#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    artifacts: Vec<Artifact>,
}

#[derive(Deserialize)]
struct Artifact {
    path: String,
}

/// Download a file that a job kept.
///
/// It is always sent as an attachment of no particular type: whatever a job wrote is never shown as a page of ours.
#[utoipa::path(get, path = "/jobs/{id}/artifacts/{path}", tag = "jobs",
    params(("id" = String, Path, description = "The job"), ("path" = String, Path, description = "As in its result")),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    params: RawPathParams,
) -> Result<Response, Problem> {
    let absent = || Problem::not_found("artifact");
    let path = params
        .iter()
        .find(|(name, _)| *name == "path")
        .map(|(_, path)| path)
        .ok_or_else(absent)?;
    let detail = read::read(&app, &caller, id).await?;
    let kept: Kept = detail
        .result
        .as_deref()
        .and_then(|json| serde_json::from_slice(json).ok())
        .ok_or_else(absent)?;
    if !kept.artifacts.iter().any(|artifact| artifact.path == path) {
        return Err(absent());
    }
    match app.objects().get(&artifact_key(id, detail.job.attempt, path)).await {
        Ok(content) => Ok(download(path, content)),
        Err(objects::Error::NotFound) => Err(absent()),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "an artifact cannot be read");
            Err(Problem::unavailable("the object store does not answer"))
        }
    }
}

fn download(path: &str, content: bytes::Bytes) -> Response {
    let name: String = path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    response
}
