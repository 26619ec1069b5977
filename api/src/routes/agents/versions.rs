//! The versions of an agent.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::ids::AgentId;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{VersionView, read, write};
use crate::auth::Caller;
use crate::extract::{Params, PathId, PathSteps, ValidJson};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

/// List an agent's versions, newest first.
#[utoipa::path(get, path = "/agents/{id}/versions", tag = "agents",
    params(("id" = String, Path, description = "The agent"), ("limit" = Option<u32>, Query, description = "1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<VersionView>), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list_versions(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let limit = params.limit();
    let before = params
        .cursor::<Uuid>()
        .and_then(|cursor| u32::try_from(cursor.as_u128()).ok());
    params.finish()?;
    read(&app, &caller, id).await?;
    let versions = app.store().agent_versions(id, before, limit + 1).await?;
    let place = |version: &common::store::agents::AgentVersion| Uuid::from_u128(version.version.into());
    Ok(Json(List::page(versions, limit, place, VersionView::from)).into_response())
}

/// Read one version of an agent.
#[utoipa::path(get, path = "/agents/{id}/versions/{version}", tag = "agents",
    params(("id" = String, Path, description = "The agent"), ("version" = u32, Path, description = "The version")),
    responses((status = 200, body = VersionView), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn get_version(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    steps: PathSteps,
) -> Result<Response, Problem> {
    let absent = || Problem::not_found("version of an agent");
    let version: u32 = steps.get("version").parse().map_err(|_garbage| absent())?;
    read(&app, &caller, id).await?;
    let found = app.store().agent_version(id, version).await?.ok_or_else(absent)?;
    Ok(Json(VersionView::from(found)).into_response())
}

/// Which version to go back to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackRequest {
    /// A version that the agent had. Required.
    #[schema(required, nullable = false)]
    version: Option<u32>,
}

/// Go back to an earlier version: its content becomes a new one.
#[utoipa::path(post, path = "/agents/{id}/rollback", tag = "agents", request_body = RollbackRequest,
    params(("id" = String, Path, description = "The agent")),
    responses(
        (status = 200, body = super::AgentView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn rollback(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    ValidJson(request): ValidJson<RollbackRequest>,
) -> Result<Response, Problem> {
    let agent = read(&app, &caller, id).await?;
    let wanted = request
        .version
        .ok_or_else(|| Problem::field("/version", "is required"))?;
    let found = app.store().agent_version(id, wanted).await?;
    let found = found.ok_or_else(|| Problem::field("/version", "is not a version of this agent"))?;
    write::save(&app, &caller, id, agent.version, &found.definition).await
}
