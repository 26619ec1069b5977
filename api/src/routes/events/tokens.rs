//! Tokens for streams, for browsers whose `EventSource` cannot send headers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use common::ids::JobId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::{Caller, StreamToken, unauthenticated};
use crate::extract::{OptionalJson, PathId};
use crate::openapi::BASE;
use crate::problem::{Document, Problem};
use crate::state::App;

/// How long a token should be good for.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TokenRequest {
    /// At most `60m`, which is the default.
    #[schema(example = "10m")]
    ttl: Option<String>,
}

/// A token for one stream.
#[derive(Serialize, ToSchema)]
struct StreamTokenView {
    /// Give it as `?token=`.
    token: String,
    /// When it ends.
    expires_at: DateTime<Utc>,
    /// The stream, token included.
    url: String,
}

/// Make a token for the stream of a job.
///
/// It is good for that stream alone, for an hour at most, and no longer than the key that asked for it.
#[utoipa::path(post, path = "/jobs/{id}/stream-tokens", tag = "events", request_body = Option<TokenRequest>,
    params(("id" = String, Path, description = "The job")),
    responses(
        (status = 201, body = StreamTokenView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    PathId(job_id): PathId<JobId>,
    OptionalJson(request): OptionalJson<TokenRequest>,
) -> Result<Response, Problem> {
    let ttl = match &request.ttl {
        None => StreamToken::TTL_MAX,
        Some(text) => ttl(text).ok_or_else(|| Problem::field("/ttl", "is a duration between 1s and 60m"))?,
    };
    app.store()
        .job(caller.tenant_id(), job_id)
        .await?
        .ok_or_else(|| Problem::not_found("job"))?;
    let (key, _) = app
        .keyring()
        .by_id(app.store(), caller.key_id)
        .await?
        .ok_or_else(unauthenticated)?;
    // Whole seconds, as in the token.
    let end = app.clock().now() + ttl;
    let expires_at = DateTime::from_timestamp(end.timestamp(), 0).unwrap_or(end);
    let token = StreamToken {
        key_id: key.id,
        tenant_id: caller.tenant_id(),
        job_id,
        expires_at,
    }
    .sign(&key);
    let url = format!("{BASE}/jobs/{job_id}/events?token={token}");
    Ok((StatusCode::CREATED, Json(StreamTokenView { token, expires_at, url })).into_response())
}

fn ttl(text: &str) -> Option<TimeDelta> {
    let ttl = TimeDelta::from_std(humantime::parse_duration(text).ok()?).ok()?;
    (TimeDelta::seconds(1)..=StreamToken::TTL_MAX)
        .contains(&ttl)
        .then_some(ttl)
}
