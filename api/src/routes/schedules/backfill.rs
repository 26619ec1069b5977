//! Backfill: jobs for due times of the past that made none.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, TimeDelta, Utc};
use common::ids::ScheduleId;
use common::job::NewJob;
use common::queue::Dispatch;
use common::schedule::{Overlap, Schedule};
use common::store::fire::{BACKFILL_MAX, Backfilled};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::read::find;
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::problem::{Code, Document, FieldError, Problem};
use crate::routes::jobs::strategy::make_way;
use crate::state::App;

/// Which due times are made up for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackfillRequest {
    /// The first moment of the range.
    from: DateTime<Utc>,
    /// The end of the range, which is not in it; not in the future.
    to: DateTime<Utc>,
    /// `queue_all`: one after another, in their order; or `allow`: side by side. `queue_all`.
    overlap: Option<Overlap>,
    /// Only count.
    #[serde(default)]
    dry_run: bool,
}

/// What a backfill did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BackfillView {
    /// Due times in the range.
    matched: usize,
    /// Those that made a job now; the others had one.
    fired: usize,
    /// The jobs, oldest due time first.
    job_ids: Vec<Uuid>,
}

/// Backfill a range: make a job for each due time in it that has none, whether it was missed, skipped or never came.
///
/// The schedule's own bounds, its pause and its limit on fires are not asked, and its next due time stays as it is.
#[utoipa::path(post, path = "/schedules/{id}/backfill", tag = "schedules", request_body = BackfillRequest,
    params(("id" = String, Path, description = "The schedule")),
    responses(
        (status = 202, body = BackfillView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn backfill(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    ValidJson(request): ValidJson<BackfillRequest>,
) -> Result<Response, Problem> {
    let (schedule, _) = find(&app, &caller, id).await?;
    let overlap = request.overlap.unwrap_or(Overlap::QueueAll);
    let mut errors = Vec::new();
    if request.from.year() < 1970 {
        errors.push(FieldError::body("/from", "is before 1970"));
    }
    if request.to > app.clock().now() {
        errors.push(FieldError::body(
            "/to",
            "is in the future: what is to come fires by itself",
        ));
    }
    if request.to <= request.from {
        errors.push(FieldError::body("/to", "is not after from"));
    }
    if !matches!(overlap, Overlap::QueueAll | Overlap::Allow) {
        errors.push(FieldError::body("/overlap", "is queue_all or allow"));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let times = due_times(&schedule, request.from, request.to)?;
    let jobs = if request.dry_run || times.is_empty() {
        Vec::new()
    } else {
        match app.store().backfill(caller.tenant_id(), id, &times, overlap).await? {
            Backfilled::Fired(jobs, gone) => {
                make_way(&app, &gone).await;
                jobs
            }
            Backfilled::Refused(reason) => return Err(Problem::new(Code::Conflict, reason)),
            Backfilled::NotFound => return Err(Problem::not_found("schedule")),
        }
    };
    app.submitter().dispatch(jobs.iter().map(Dispatch::from_new).collect());
    Ok((StatusCode::ACCEPTED, Json(view(times.len(), &jobs))).into_response())
}

fn view(matched: usize, jobs: &[NewJob]) -> BackfillView {
    BackfillView {
        matched,
        fired: jobs.len(),
        job_ids: jobs.iter().map(|job| job.id.into()).collect(),
    }
}

fn due_times(schedule: &Schedule, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<Vec<DateTime<Utc>>, Problem> {
    let cron = &schedule.timing.cron;
    // A due time that is stored has microseconds.
    let from = DateTime::from_timestamp_micros(from.timestamp_micros()).unwrap_or(from);
    let first = cron.next_after(from - TimeDelta::microseconds(1));
    let times: Vec<_> = std::iter::successors(first, |last| cron.next_after(*last))
        .take_while(|at| *at < to)
        .take(BACKFILL_MAX + 1)
        .collect();
    if times.len() > BACKFILL_MAX {
        let detail = format!("leaves more than {BACKFILL_MAX} due times: choose a shorter range");
        return Err(Problem::field("/to", detail));
    }
    Ok(times)
}
