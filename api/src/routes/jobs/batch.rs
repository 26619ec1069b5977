//! `POST /jobs/batch`: many jobs at once, each of which is accepted or refused alone.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::NewJob;
use common::store::insert::{Accepted, Submission};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::idempotency::{self, Keyed};
use super::{strategy, to_json};
use crate::auth::Caller;
use crate::extract::{RawBody, from_json};
use crate::job::{JobRequest, JobView, prepare};
use crate::problem::{Code, Document, Problem};
use crate::state::App;

/// The body of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BatchRequest {
    /// Up to 1,000 jobs as for `POST /jobs`.
    #[schema(value_type = Vec<JobRequest>)]
    jobs: Vec<Box<RawValue>>,
}

/// What became of the jobs of a batch, in its order.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchAnswer {
    /// One for each job.
    #[schema(value_type = Vec<BatchItem>)]
    data: Vec<Item>,
}

/// What became of one job of a batch: `job` or `error`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct BatchItem {
    /// Its place in the batch, from 0.
    index: usize,
    /// The job, when it was accepted.
    job: Option<JobView<'static>>,
    /// What is wrong with it, when it was not.
    error: Option<Document>,
}

#[derive(Serialize)]
struct Item {
    index: usize,
    #[serde(flatten)]
    outcome: Outcome,
}

impl Item {
    fn is_refused(&self) -> bool {
        matches!(self.outcome, Outcome::Error(_))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Job(Box<RawValue>),
    Error(Box<Document>),
}

impl Outcome {
    fn job(view: &JobView<'_>) -> Self {
        let json = serde_json::value::to_raw_value(view).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self::Job(json)
    }

    fn error(problem: &Problem) -> Self {
        Self::Error(Box::new(problem.document()))
    }
}

/// Submit many jobs.
///
/// Each is accepted or refused alone; what is accepted is committed when this answers. An `Idempotency-Key` covers the
/// whole request.
#[utoipa::path(post, path = "/jobs/batch", tag = "jobs", request_body = BatchRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = BatchAnswer),
        (status = 400, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn submit_batch(
    State(app): State<App>,
    caller: Caller,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    let request: BatchRequest = from_json(body.text(), "")?;
    let max = app.config().submit.batch_max;
    if request.jobs.is_empty() || request.jobs.len() > max {
        return Err(Problem::field("/jobs", format!("has 1 to {max} items")));
    }
    let mut data = Vec::with_capacity(request.jobs.len());
    let mut jobs = Vec::with_capacity(request.jobs.len());
    for (index, json) in request.jobs.iter().enumerate() {
        let outcome = match prepare(&app, &caller, json.get(), &format!("/jobs/{index}")).await {
            Ok(job) => {
                let outcome = Outcome::job(&JobView::accepted(&job));
                jobs.push((index, job));
                outcome
            }
            // A database that is away is no fault of this one job.
            Err(problem) if problem.code() == Code::Unavailable => return Err(problem),
            Err(problem) => Outcome::error(&problem),
        };
        data.push(Item { index, outcome });
    }
    let refused: Vec<usize> = data
        .iter()
        .filter(|item| item.is_refused())
        .map(|item| item.index)
        .collect();
    let mut idempotency = key.fingerprint(body.bytes());
    let earlier = if refused.is_empty() {
        None
    } else {
        idempotency::earlier(&app, &caller, idempotency.as_ref()).await?
    };
    if let Some(ids) = earlier {
        repeated(&app, &caller, &ids, &mut data).await?;
    } else if !jobs.is_empty() {
        if let Some(idempotency) = &mut idempotency {
            idempotency.refused = refused;
        }
        Box::pin(insert(&app, &caller, jobs, idempotency, &mut data)).await?;
    }
    let body = to_json(&BatchAnswer { data });
    Ok((StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn insert(
    app: &App,
    caller: &Caller,
    jobs: Vec<(usize, NewJob)>,
    idempotency: Option<common::store::idempotency::Idempotency>,
    data: &mut [Item],
) -> Result<(), Problem> {
    let (indexes, jobs): (Vec<usize>, Vec<NewJob>) = jobs.into_iter().unzip();
    let has_key = idempotency.is_some();
    let submission = Submission {
        tenant_id: caller.tenant_id(),
        jobs: jobs.clone(),
        idempotency,
    };
    match app.submitter().submit(submission).await {
        Ok(Accepted::Inserted) => Ok(()),
        Ok(Accepted::Decided(decided)) => {
            for (index, job) in indexes.iter().zip(&jobs) {
                if let (true, Some(item)) = (decided.rejected.contains(&job.id), data.get_mut(*index)) {
                    item.outcome = Outcome::error(&strategy::rejected());
                }
            }
            strategy::make_way(app, &decided.superseded).await;
            Ok(())
        }
        Ok(Accepted::KeyReused) => Err(idempotency::reused()),
        Ok(Accepted::Repeated(ids)) => repeated(app, caller, &ids, data).await,
        // Postgres refuses the data of one of them: the others are accepted all the same.
        Err(problem) if problem.code() == Code::InvalidRequest && !has_key => {
            one_by_one(app, caller, indexes, jobs, data).await
        }
        Err(problem) => Err(problem),
    }
}

async fn one_by_one(
    app: &App,
    caller: &Caller,
    indexes: Vec<usize>,
    jobs: Vec<NewJob>,
    data: &mut [Item],
) -> Result<(), Problem> {
    let submitted = indexes.into_iter().zip(jobs).map(async |(index, job)| {
        let submission = Submission {
            tenant_id: caller.tenant_id(),
            jobs: vec![job],
            idempotency: None,
        };
        (index, app.submitter().submit(submission).await)
    });
    for (index, outcome) in futures_util::future::join_all(submitted).await {
        if let (Err(problem), Some(item)) = (strategy::admitted(app, outcome).await, data.get_mut(index)) {
            item.outcome = Outcome::error(&problem);
        }
    }
    Ok(())
}

/// Shows the first request's jobs in their places. What was refused then is refused still.
async fn repeated(app: &App, caller: &Caller, ids: &[Option<JobId>], data: &mut [Item]) -> Result<(), Problem> {
    let first = idempotency::first_jobs(app, caller, ids).await?;
    for (item, id) in data.iter_mut().zip(ids) {
        let Some(id) = id else {
            if !item.is_refused() {
                let problem = Problem::new(Code::Conflict, "it was refused when this request was made first");
                item.outcome = Outcome::error(&problem);
            }
            continue;
        };
        item.outcome = match first.iter().find(|job| job.id == *id) {
            Some(job) => Outcome::job(&JobView::new(job)),
            None => Outcome::error(&idempotency::gone()),
        };
    }
    Ok(())
}
