//! Making, changing, pausing and deleting schedules.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::ids::ScheduleId;
use common::schedule::Schedule;
use serde::Deserialize;
use utoipa::ToSchema;

use super::IfMatch;
use super::read::{find, shown};
use super::request::{ScheduleRequest, Settings, must_fire};
use super::view::ScheduleView;
use crate::auth::Caller;
use crate::extract::{OptionalJson, PathId, RawBody};
use crate::openapi::BASE;
use crate::problem::{Document, Problem};
use crate::state::App;

/// How often a change is tried again that met another one.
const TRIES: usize = 5;

/// Save a schedule.
#[utoipa::path(post, path = "/schedules", tag = "schedules", request_body = ScheduleRequest,
    responses(
        (status = 201, body = ScheduleView<'static>, headers(("Location" = String, description = "Where it is"))),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn create(State(app): State<App>, caller: Caller, body: RawBody) -> Result<Response, Problem> {
    let settings = ScheduleRequest::read(&body)?.settings(&app, &caller, None).await?;
    let now = app.clock().now();
    let schedule = settings.schedule(ScheduleId::new(), caller.tenant_id(), now);
    must_fire(&schedule, now)?;
    app.store().create_schedule(&schedule).await?;
    let mut response = (StatusCode::CREATED, shown(&schedule, None)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("{BASE}/schedules/{}", schedule.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Change a schedule.
///
/// What is left out stays as it is. With `If-Match` it is changed only if nobody else changed it since it was read.
#[utoipa::path(patch, path = "/schedules/{id}", tag = "schedules", request_body = ScheduleRequest,
    params(("id" = String, Path, description = "The schedule"),
        ("If-Match" = Option<String>, Header, description = "The entity tag that was read")),
    responses(
        (status = 200, body = ScheduleView<'static>, headers(("ETag" = String, description = "Its version"))),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn change(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Response, Problem> {
    let edit = Edit::Change(Box::new(ScheduleRequest::read(&body)?));
    update(&app, &caller, id, &IfMatch::read(&headers)?, &edit).await
}

/// Why a schedule is paused.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PauseRequest {
    /// For people; at most 1,000 characters.
    reason: Option<String>,
}

/// Pause a schedule: it fires nothing until it is resumed.
#[utoipa::path(post, path = "/schedules/{id}/pause", tag = "schedules", request_body = Option<PauseRequest>,
    params(("id" = String, Path, description = "The schedule")),
    responses(
        (status = 200, body = ScheduleView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json")))]
pub(super) async fn pause(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    headers: HeaderMap,
    OptionalJson(request): OptionalJson<PauseRequest>,
) -> Result<Response, Problem> {
    let is_text = |reason: &String| !reason.contains('\0') && reason.chars().count() <= 1_000;
    if !request.reason.iter().all(is_text) {
        return Err(Problem::field("/reason", "is at most 1000 characters without NUL"));
    }
    update(
        &app,
        &caller,
        id,
        &IfMatch::read(&headers)?,
        &Edit::Pause(request.reason),
    )
    .await
}

/// Resume a schedule at its next due time; those that passed meanwhile are left out.
#[utoipa::path(post, path = "/schedules/{id}/resume", tag = "schedules",
    params(("id" = String, Path, description = "The schedule")),
    responses(
        (status = 200, body = ScheduleView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json")))]
pub(super) async fn resume(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    update(&app, &caller, id, &IfMatch::read(&headers)?, &Edit::Resume).await
}

/// Delete a schedule. Its jobs stay.
#[utoipa::path(delete, path = "/schedules/{id}", tag = "schedules",
    params(("id" = String, Path, description = "The schedule"),
        ("If-Match" = Option<String>, Header, description = "The entity tag that was read")),
    responses(
        (status = 204),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let wanted = IfMatch::read(&headers)?;
    let (schedule, _) = find(&app, &caller, id).await?;
    wanted.check(schedule.version)?;
    let version = wanted.insists().then_some(schedule.version);
    if app
        .store()
        .delete_schedule(caller.tenant_id(), id, version, app.clock().now())
        .await?
    {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(wanted.refusal())
    }
}

/// What is done to a schedule.
#[derive(Debug)]
enum Edit {
    Change(Box<ScheduleRequest>),
    Pause(Option<String>),
    Resume,
}

impl Edit {
    /// Does it, and moves the next due time where it must.
    async fn apply(&self, app: &App, caller: &Caller, schedule: &mut Schedule) -> Result<bool, Problem> {
        let now = app.clock().now();
        schedule.updated_at = now;
        let reschedule = match self {
            Self::Change(request) => {
                let (timing, enabled) = (schedule.timing.clone(), schedule.enabled);
                change_settings(app, caller, request, schedule).await?;
                enabled != schedule.enabled || !timing.is_due_like(&schedule.timing)
            }
            Self::Pause(reason) => {
                schedule.enabled = false;
                schedule.paused_reason.clone_from(reason);
                true
            }
            Self::Resume => {
                // Resuming what fires already must not skip a due time that has just come.
                let was_paused = !schedule.enabled;
                schedule.enabled = true;
                schedule.paused_reason = None;
                if was_paused {
                    schedule.failures_in_row = 0;
                }
                was_paused
            }
        };
        if reschedule {
            schedule.next_fire_at = schedule.first(now);
        }
        if reschedule && matches!(self, Self::Change(_)) {
            must_fire(schedule, now)?;
        }
        Ok(reschedule)
    }
}

async fn change_settings(
    app: &App,
    caller: &Caller,
    request: &ScheduleRequest,
    schedule: &mut Schedule,
) -> Result<(), Problem> {
    let old = Settings::of(schedule);
    request
        .clone()
        .settings(app, caller, Some(&old))
        .await?
        .change(schedule);
    Ok(())
}

/// Reads a schedule, edits it, and saves it unless somebody else did meanwhile; then all of it again.
async fn update(
    app: &App,
    caller: &Caller,
    id: ScheduleId,
    wanted: &IfMatch,
    edit: &Edit,
) -> Result<Response, Problem> {
    for _ in 0..TRIES {
        let (mut schedule, last) = find(app, caller, id).await?;
        wanted.check(schedule.version)?;
        let reschedule = edit.apply(app, caller, &mut schedule).await?;
        if app
            .store()
            .update_schedule(&schedule, schedule.version, reschedule)
            .await?
        {
            schedule.version += 1;
            return Ok(shown(&schedule, last.as_ref()));
        }
    }
    Err(wanted.refusal())
}
