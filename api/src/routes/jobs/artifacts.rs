//! `GET /jobs/{id}/artifacts[/{path}]`: the files that a job was asked to keep.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawPathParams, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::objects::{self, artifact_key};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::read;
use crate::auth::Caller;
use crate::download::{Content, content_type};
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::routes::List;
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
    size: u64,
    url: String,
}

/// A file that a job kept.
#[derive(Serialize, ToSchema)]
#[schema(as = Artifact)]
pub(super) struct ArtifactView {
    path: String,
    /// Bytes.
    size: u64,
    /// What it is, by its name.
    content_type: &'static str,
    url: String,
}

/// What the job kept, and the attempt that did.
async fn kept(app: &App, caller: &Caller, id: JobId) -> Result<(Kept, u32), Problem> {
    let detail = read::read(app, caller, id).await?;
    let kept = detail
        .result
        .as_deref()
        .and_then(|json| serde_json::from_slice(json).ok());
    let none = Kept { artifacts: Vec::new() };
    Ok((kept.unwrap_or(none), detail.job.attempt))
}

/// List the files that a job kept. They are kept as long as the job itself.
#[utoipa::path(get, path = "/jobs/{id}/artifacts", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses((status = 200, body = List<ArtifactView>), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let (kept, _) = kept(&app, &caller, id).await?;
    let view = |artifact: Artifact| ArtifactView {
        content_type: content_type(&artifact.path),
        path: artifact.path,
        size: artifact.size,
        url: artifact.url,
    };
    Ok(Json(List::whole(kept.artifacts.into_iter().map(view).collect())).into_response())
}

/// Download a file that a job kept, or a part of it.
///
/// It is always sent as an attachment: whatever a job wrote is never shown as a page of ours.
#[utoipa::path(get, path = "/jobs/{id}/artifacts/{path}", tag = "jobs",
    params(("id" = String, Path, description = "The job"), ("path" = String, Path, description = "As in its result"),
        ("Range" = Option<String>, Header, description = "Such as `bytes=0-999`"),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag` of before: 304 when it is the same")),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 206, body = [u8], content_type = "application/octet-stream"), (status = 304),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 416, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    headers: HeaderMap,
    params: RawPathParams,
) -> Result<Response, Problem> {
    let absent = || Problem::not_found("artifact");
    let path = params
        .iter()
        .find(|(name, _)| *name == "path")
        .map(|(_, path)| path)
        .ok_or_else(absent)?;
    let (kept, attempt) = kept(&app, &caller, id).await?;
    if !kept.artifacts.iter().any(|artifact| artifact.path == path) {
        return Err(absent());
    }
    let key = artifact_key(id, attempt, path);
    let refuse = |error: objects::Error| match error {
        objects::Error::NotFound => absent(),
        error => {
            tracing::warn!(error = &error as &dyn std::error::Error, "an artifact cannot be read");
            Problem::unavailable("the object store does not answer")
        }
    };
    let size = app.objects().size(&key).await.map_err(refuse)?;
    // An attempt writes an artifact once, so its name says what is in it.
    let digest = hex::encode(Sha256::digest(&key));
    let content = Content {
        etag: format!("\"{}\"", digest.get(..32).unwrap_or_default()),
        size,
        path: path.to_owned(),
        modified_at: None,
    };
    let part = match content.wanted(&headers) {
        Ok(part) => part,
        Err(answer) => return Ok(*answer),
    };
    if part.range.is_empty() {
        return Ok(part.response(Body::empty()));
    }
    let stream = app
        .objects()
        .read(&key, Some(part.range.clone()))
        .await
        .map_err(refuse)?;
    Ok(part.response(Body::from_stream(stream)))
}
