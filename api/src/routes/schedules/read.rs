//! Looking at schedules.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::ScheduleId;
use common::schedule::{Fire, Schedule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::request::read_cron;
use super::view::ScheduleView;
use super::with_etag;
use crate::auth::Caller;
use crate::extract::{Cursor, Params, PathId, ValidJson};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

const PREVIEW_DEFAULT: usize = 5;
const PREVIEW_MAX: usize = 100;

/// List schedules, newest first.
#[utoipa::path(get, path = "/schedules", tag = "schedules",
    params(("limit" = Option<u32>, Query, description = "Most items, 1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "The last page's `next_cursor`")),
    responses(
        (status = 200, body = List<ScheduleView<'static>>),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let (limit, before) = (params.limit(), params.cursor::<ScheduleId>());
    params.finish()?;
    let mut found = app.store().schedules(caller.tenant_id(), before, limit + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = found.last().filter(|_| more).map(|(last, _)| Cursor::encode(last.id));
    let data = found
        .iter()
        .map(|(schedule, last)| ScheduleView::listed(schedule, last.as_ref()))
        .collect();
    Ok(Json(List { data, next_cursor }).into_response())
}

/// Read a schedule.
#[utoipa::path(get, path = "/schedules/{id}", tag = "schedules",
    params(("id" = String, Path, description = "The schedule")),
    responses(
        (status = 200, body = ScheduleView<'static>, headers(("ETag" = String, description = "Its version"))),
        (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
) -> Result<Response, Problem> {
    let (schedule, last) = find(&app, &caller, id).await?;
    Ok(shown(&schedule, last.as_ref()))
}

/// The caller's schedule.
pub(super) async fn find(app: &App, caller: &Caller, id: ScheduleId) -> Result<(Schedule, Option<Fire>), Problem> {
    let found = app.store().schedule(caller.tenant_id(), id).await?;
    found.ok_or_else(|| Problem::not_found("schedule"))
}

/// A schedule with its entity tag.
pub(super) fn shown(schedule: &Schedule, last: Option<&Fire>) -> Response {
    with_etag(
        Json(ScheduleView::detailed(schedule, last)).into_response(),
        schedule.version,
    )
}

/// What is to be previewed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PreviewRequest {
    /// The expression.
    #[schema(example = "30 2 * * *")]
    cron: String,
    /// A name of the IANA database; `UTC`.
    #[schema(example = "Europe/Berlin")]
    timezone: Option<String>,
    /// How many, 1 to 100; 5.
    count: Option<usize>,
    /// After which moment; now.
    after: Option<DateTime<Utc>>,
}

/// When an expression is due.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Preview {
    /// The due times.
    next_fires: Vec<DateTime<Utc>>,
    /// The same on the wall of the zone.
    local: Vec<String>,
}

/// Show when an expression is due, without saving anything.
#[utoipa::path(post, path = "/schedules/preview", tag = "schedules", request_body = PreviewRequest,
    responses(
        (status = 200, body = Preview),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn preview(
    State(app): State<App>,
    _caller: Caller,
    ValidJson(request): ValidJson<PreviewRequest>,
) -> Result<Json<Preview>, Problem> {
    let zone = request.timezone.as_deref().unwrap_or("UTC");
    let cron = read_cron(&request.cron, zone).map_err(|error| Problem::invalid(vec![error]))?;
    let count = request.count.unwrap_or(PREVIEW_DEFAULT);
    if !(1..=PREVIEW_MAX).contains(&count) {
        return Err(Problem::field("/count", format!("is between 1 and {PREVIEW_MAX}")));
    }
    let after = request.after.unwrap_or_else(|| app.clock().now());
    if !(1970..=2200).contains(&chrono::Datelike::year(&after)) {
        return Err(Problem::field("/after", "is between 1970 and 2200"));
    }
    let next_fires = cron.next_n(after, count);
    let local = next_fires.iter().map(|at| cron.local(*at)).collect();
    Ok(Json(Preview { next_fires, local }))
}
