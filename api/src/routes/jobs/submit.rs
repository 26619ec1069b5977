//! `POST /jobs`.

use axum::extract::State;
use axum::response::Response;
use common::store::insert::{Accepted, Submission};

use super::idempotency::{self, Keyed};
use super::{accepted, strategy, to_json};
use crate::auth::Caller;
use crate::extract::RawBody;
use crate::job::{JobRequest, JobView, prepare};
use crate::problem::{Document, Problem};
use crate::state::App;

/// Submit a job.
///
/// It is committed when this answers. The same `Idempotency-Key` with the same body answers the first job again.
#[utoipa::path(post, path = "/jobs", tag = "jobs", request_body = JobRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = JobView<'static>, headers(("Location" = String, description = "Where the job is"))),
        (status = 400, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 413, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    let idempotency = key.fingerprint(body.bytes());
    let job = match prepare(&app, &caller, body.text(), "").await {
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
        Accepted::Decided(decided) if decided.rejected.contains(&id) => Err(strategy::rejected()),
        Accepted::Decided(decided) => {
            app.hub().announce(id);
            strategy::make_way(&app, &decided.superseded).await;
            Ok(accepted(id, answer))
        }
        Accepted::KeyReused => Err(idempotency::reused()),
        Accepted::Repeated(ids) => idempotency::first_job(&app, &caller, &ids).await,
    }
}
