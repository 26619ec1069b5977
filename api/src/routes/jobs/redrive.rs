//! Repeating finished jobs: a redrive is a new job that names the old one.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::StateName;
use common::queue::Dispatch;
use common::store::promote::Requeued;

use super::cancel::{Matched, count};
use super::filter::ManyRequest;
use super::{accepted, strategy, to_json};
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::job::JobView;
use crate::problem::{Code, Document, Problem};
use crate::state::App;

const ENDED: [StateName; 3] = [StateName::Failed, StateName::Cancelled, StateName::Succeeded];

/// Jobs of one transaction.
const BATCH: u32 = 500;

/// Repeat a finished job.
///
/// The new job has the same input and settings, starts at once and names the old one as `redrive_of`. A group is repeated
/// with all of its jobs.
#[utoipa::path(post, path = "/jobs/{id}/redrive", tag = "jobs", params(("id" = String, Path, description = "The job")),
    responses(
        (status = 202, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json")))]
pub(super) async fn redrive(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
) -> Result<Response, Problem> {
    let by = (caller.key_id, app.clock().now());
    let redriven = app.store().redrive(caller.tenant_id(), id, by).await?;
    let Some(job) = redriven.jobs.first() else {
        // Absent, or still open.
        super::read::read(&app, &caller, id).await?;
        return Err(Problem::new(Code::Conflict, "the job has not ended"));
    };
    announce(&app, &redriven).await;
    // The strategy of its key may have refused it, in the transaction that made it.
    let decided = if redriven.decided.rejected.contains(&job.id) {
        app.store().jobs(&[job.id]).await?.pop()
    } else {
        None
    };
    let answer = to_json(&JobView::new(decided.as_ref().unwrap_or(job)));
    Ok(accepted(job.id, answer))
}

/// Repeat every finished job that matches and was not repeated yet; without `state`, those that failed.
///
/// One call goes on for some seconds; when it answers `more`, the same call with the `created_before` that it answered goes
/// on where it ended. The failed jobs of a group are those with its `parent_id`.
#[utoipa::path(post, path = "/jobs/redrive", tag = "jobs", request_body = ManyRequest,
    responses(
        (status = 200, body = Matched),
        (status = 422, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn redrive_many(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<ManyRequest>,
) -> Result<Response, Problem> {
    let filter = request.filter(&ENDED, app.clock().now())?;
    let state = filter.state.unwrap_or(StateName::Failed);
    if request.dry_run {
        return count(&app, &caller, &filter, &[state]).await;
    }
    let (begun, budget) = (Instant::now(), app.config().submit.many_budget);
    let mut matched = 0;
    let more = loop {
        let by = (caller.key_id, app.clock().now());
        let redriven = app
            .store()
            .redrive_matching(caller.tenant_id(), &filter, state, BATCH, by)
            .await?;
        let count = redriven.jobs.len();
        announce(&app, &redriven).await;
        matched += u64::try_from(count).unwrap_or(0);
        if count < BATCH as usize {
            break false;
        }
        if begun.elapsed() >= budget {
            break true;
        }
    };
    Ok(Json(Matched {
        matched,
        more,
        created_before: filter.created_before,
    })
    .into_response())
}

/// Makes committed jobs known, but for those that the strategy of their key refused: they have failed.
async fn announce(app: &App, redriven: &Requeued) {
    for job in &redriven.jobs {
        app.hub().announce(job.id);
    }
    app.submitter()
        .dispatch(redriven.admitted().map(Dispatch::from_job).collect());
    strategy::make_way(app, &redriven.decided.superseded).await;
}
