//! Making, changing and deleting agents.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use common::agent::AgentDefinition;
use common::ids::AgentId;
use serde_json::{Map, Value};

use super::{AgentView, read};
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson, from_json};
use crate::job::{metadata_faults, refuse};
use crate::problem::{Code, Document, Problem};
use crate::routes::created;
use crate::state::App;

/// Refuses a definition that cannot be saved.
pub(super) fn check(definition: &AgentDefinition) -> Result<(), Problem> {
    refuse("", definition.validate(true))?;
    let notes = metadata_faults(&definition.metadata);
    if notes.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(notes))
    }
}

/// Save an agent.
#[utoipa::path(post, path = "/agents", tag = "agents", request_body = AgentDefinition,
    responses((status = 201, body = AgentView), (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn create(
    State(app): State<App>,
    caller: Caller,
    ValidJson(fields): ValidJson<Map<String, Value>>,
) -> Result<Response, Problem> {
    let definition = merged(&AgentDefinition::default(), fields)?;
    check(&definition)?;
    let agent = app
        .store()
        .insert_agent(caller.tenant_id(), &definition, app.clock().now())
        .await?;
    Ok(created(&format!("/agents/{}", agent.id), &AgentView::from(agent)))
}

/// Change an agent: what is given replaces what was, and `null` puts the default back. This makes a new version.
#[utoipa::path(patch, path = "/agents/{id}", tag = "agents", request_body = AgentDefinition,
    params(("id" = String, Path, description = "The agent")),
    responses(
        (status = 200, body = AgentView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn update(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    ValidJson(fields): ValidJson<Map<String, Value>>,
) -> Result<Response, Problem> {
    let agent = read(&app, &caller, id).await?;
    let definition = merged(&agent.definition, fields)?;
    save(&app, &caller, id, agent.version, &definition).await
}

/// Saves another version over the one that was read.
pub(super) async fn save(
    app: &App,
    caller: &Caller,
    id: AgentId,
    expected: u32,
    definition: &AgentDefinition,
) -> Result<Response, Problem> {
    check(definition)?;
    let saved = app
        .store()
        .update_agent(caller.tenant_id(), id, expected, definition, app.clock().now())
        .await?;
    let saved = saved.ok_or_else(|| Problem::new(Code::Conflict, "somebody else changed the agent at this moment"))?;
    Ok(Json(AgentView::from(saved)).into_response())
}

/// A definition with some of its fields replaced.
fn merged(old: &AgentDefinition, fields: Map<String, Value>) -> Result<AgentDefinition, Problem> {
    let Ok(Value::Object(mut whole)) = serde_json::to_value(old) else {
        return Ok(old.clone());
    };
    for (name, value) in fields {
        // `null` is a value of its own for `command`, and the default for everything else.
        if value.is_null() && name != "command" && whole.contains_key(&name) {
            whole.remove(&name);
        } else {
            whole.insert(name, value);
        }
    }
    from_json(&Value::Object(whole).to_string(), "")
}

/// Delete an agent. Its jobs and conversations stay.
#[utoipa::path(delete, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent")),
    responses((status = 204), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
) -> Result<Response, Problem> {
    if app
        .store()
        .delete_agent(caller.tenant_id(), id, app.clock().now())
        .await?
    {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Problem::not_found("agent"))
    }
}
