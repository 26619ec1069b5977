//! Environments: what sandboxes hold, as the workers say it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::store::environments::Served;
use common::store::workers::BELIEVED_FOR;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{List, Resource};
use crate::auth::Caller;
use crate::extract::Params;
use crate::problem::Problem;
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(environments))
}

/// What a sandbox holds, how large it is and what may be reached from it.
#[derive(Serialize, ToSchema)]
#[schema(as = Environment)]
struct EnvironmentView {
    name: String,
    description: String,
    /// The image that its sandboxes start from.
    image: String,
    /// What the image's name stands for now; `null` when it is not built, or the workers' driver has no images.
    image_id: Option<String>,
    /// Whether some workers start from another image than others.
    rolling: bool,
    /// The languages that it runs.
    languages: Vec<String>,
    /// Processors of a sandbox.
    cpus: f64,
    memory_bytes: u64,
    pids: u32,
    workspace_bytes: u64,
    /// Sandboxes that each worker keeps ready.
    warm_size: u32,
    /// The most sandboxes of each worker.
    warm_max: u32,
    /// Hosts that jobs may reach when they name them too.
    egress: Vec<String>,
    /// Whether `install` may be used.
    installs: bool,
    /// `never`, or `user` when jobs of one user may follow each other in a sandbox.
    reuse: String,
    /// Workers that serve it.
    workers: u32,
}

impl From<Served> for EnvironmentView {
    fn from(served: Served) -> Self {
        let Served {
            offered,
            workers,
            is_rolling,
        } = served;
        Self {
            name: offered.name,
            description: offered.description,
            image: offered.image,
            image_id: offered.image_id,
            rolling: is_rolling,
            languages: offered.languages,
            cpus: offered.cpus,
            memory_bytes: offered.memory_bytes,
            pids: offered.pids,
            workspace_bytes: offered.workspace_bytes,
            warm_size: offered.warm_size,
            warm_max: offered.warm_max,
            egress: offered.egress,
            installs: offered.installs,
            reuse: offered.reuse,
            workers,
        }
    }
}

/// List the environments that workers serve.
#[utoipa::path(get, path = "/environments", tag = "operating", responses((status = 200, body = List<EnvironmentView>)))]
async fn environments(State(app): State<App>, _caller: Caller, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let served = app.store().environments(app.clock().now(), BELIEVED_FOR).await?;
    Ok(Json(List::whole(served.into_iter().map(EnvironmentView::from).collect())).into_response())
}
