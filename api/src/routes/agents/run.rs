//! `POST /agents/{id}/runs`: one execution of an agent, without a conversation.

use axum::extract::State;
use axum::response::Response;
use common::agent::WorkspaceChoice;
use common::ids::AgentId;
use common::job::exec::InputFile;
use common::job::{Kind, NewJob};
use common::store::insert::{Accepted, Submission};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::auth::Caller;
use crate::extract::{PathId, RawBody};
use crate::job::{AgentRun, JobFields, JobView, ResolvedAgent, Runnable, fits, job_for, split};
use crate::problem::{Document, Problem};
use crate::routes::jobs::idempotency::{self, Keyed};
use crate::routes::jobs::{accepted, strategy, to_json};
use crate::state::App;

/// What an agent is run on, besides the fields of a job.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RunFields {
    /// The prompt. Required.
    #[schema(required, nullable = false)]
    input: Option<String>,
    /// Files of its sandbox.
    files: Option<Vec<InputFile>>,
    /// `agent`: it works on the files that such runs before left, one such run at a time; `none` without it.
    workspace: WorkspaceChoice,
}

/// The body of a run.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: serde cannot refuse unknown fields through flattened structs"
)]
pub(super) struct RunRequest {
    #[schema(inline)]
    #[serde(flatten)]
    run: RunFields,
    #[serde(flatten)]
    job: JobFields,
}

/// Run an agent once.
#[utoipa::path(post, path = "/agents/{id}/runs", tag = "agents", request_body = RunRequest,
    params(("id" = String, Path, description = "The agent"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn run(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    let idempotency = key.fingerprint(body.bytes());
    let job = match job(&app, &caller, id, body.text()).await {
        Ok(job) => job,
        Err(problem) => return idempotency::earlier_or(&app, &caller, idempotency.as_ref(), problem).await,
    };
    let (id, answer) = (job.id, to_json(&JobView::accepted(&job)));
    let submission = Submission {
        tenant_id: caller.tenant_id(),
        jobs: vec![job],
        idempotency,
    };
    match app.submitter().submit(submission).await? {
        Accepted::Inserted => {
            app.hub().announce(id);
            Ok(accepted(id, answer))
        }
        Accepted::Decided(decided) if !decided.rejected.is_empty() => Err(strategy::rejected()),
        Accepted::Decided(decided) => {
            strategy::make_way(&app, &decided.superseded).await;
            app.hub().announce(id);
            Ok(accepted(id, answer))
        }
        Accepted::KeyReused => Err(idempotency::reused()),
        Accepted::Repeated(ids) => idempotency::first_job(&app, &caller, &ids).await,
    }
}

async fn job(app: &App, caller: &Caller, id: AgentId, body: &str) -> Result<NewJob, Problem> {
    let agent = ResolvedAgent::saved(app, caller, id).await?;
    fits(app, body, "/input")?;
    let (run, fields): (RunFields, JobFields) = split(body, &["input", "files", "workspace"])?;
    let text = run.input.ok_or_else(|| Problem::field("/input", "is required"))?;
    let run = AgentRun {
        text: &text,
        files: &run.files.unwrap_or_default(),
        workspace: run.workspace,
    };
    let runnable = Runnable::agent_run(&agent, &run, "")?;
    job_for(app, caller, Kind::AgentRun, fields, runnable)
}
