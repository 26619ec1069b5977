//! Agents: saved, versioned definitions, and single runs of them.

mod diff;
mod draft;
mod run;
mod versions;
mod write;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::agent::AgentDefinition;
use common::ids::AgentId;
use common::store::agents::{Agent, AgentVersion};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::usage::TotalsView;
use super::{List, Resource};
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(write::create, list))
        .routes(routes!(get, write::update, write::delete))
        .routes(routes!(versions::list_versions))
        .routes(routes!(versions::get_version))
        .routes(routes!(versions::rollback))
        .routes(routes!(diff::diff))
        .routes(routes!(draft::draft))
        .routes(routes!(run::run))
}

/// A saved agent in its current version.
#[derive(Serialize, ToSchema)]
#[schema(as = Agent)]
struct AgentView {
    id: Uuid,
    /// The current version, from 1.
    version: u32,
    #[serde(flatten)]
    definition: AgentDefinition,
    created_at: DateTime<Utc>,
    /// When its current version was made.
    updated_at: DateTime<Utc>,
}

impl From<Agent> for AgentView {
    fn from(agent: Agent) -> Self {
        let Agent {
            id,
            version,
            definition,
            created_at,
            updated_at,
        } = agent;
        Self {
            id: id.into(),
            version,
            definition,
            created_at,
            updated_at,
        }
    }
}

/// One version of an agent.
#[derive(Serialize, ToSchema)]
#[schema(as = AgentVersion)]
struct VersionView {
    version: u32,
    #[serde(flatten)]
    definition: AgentDefinition,
    created_at: DateTime<Utc>,
}

impl From<AgentVersion> for VersionView {
    fn from(version: AgentVersion) -> Self {
        let AgentVersion {
            version,
            definition,
            created_at,
        } = version;
        Self {
            version,
            definition,
            created_at,
        }
    }
}

async fn read(app: &App, caller: &Caller, id: AgentId) -> Result<Agent, Problem> {
    app.store()
        .agent(caller.tenant_id(), id)
        .await?
        .ok_or_else(|| Problem::not_found("agent"))
}

/// List agents, newest first.
#[utoipa::path(get, path = "/agents", tag = "agents",
    params(("q" = Option<String>, Query, description = "With this text in the name"),
        ("limit" = Option<u32>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<AgentView>)))]
async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let text = params.text("q");
    let (limit, before) = (params.limit(), params.cursor::<AgentId>());
    params.finish()?;
    let agents = app
        .store()
        .agents(caller.tenant_id(), text.as_deref(), before, limit + 1)
        .await?;
    Ok(Json(List::page(agents, limit, |agent| agent.id, AgentView::from)).into_response())
}

/// An agent and what its runs and turns amount to.
#[derive(Serialize, ToSchema)]
struct AgentDetail {
    #[serde(flatten)]
    agent: AgentView,
    /// Of all its versions together.
    totals: AgentTotals,
}

/// What the runs and turns of an agent amount to.
#[derive(Serialize, ToSchema)]
struct AgentTotals {
    /// Runs and turns that are still kept.
    runs: u64,
    /// Those of them that failed.
    failures: u64,
    #[serde(flatten)]
    usage: TotalsView,
}

/// Read an agent, and its running totals.
#[utoipa::path(get, path = "/agents/{id}", tag = "agents", params(("id" = String, Path, description = "The agent")),
    responses((status = 200, body = AgentDetail), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, caller: Caller, PathId(id): PathId<AgentId>) -> Result<Response, Problem> {
    let agent = AgentView::from(read(&app, &caller, id).await?);
    let (runs, failures) = app.store().runs_of_agent(caller.tenant_id(), id).await?;
    let totals = AgentTotals {
        runs,
        failures,
        usage: app.store().usage_of_agent(id).await?.into(),
    };
    Ok(Json(AgentDetail { agent, totals }).into_response())
}
