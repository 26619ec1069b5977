//! `GET /jobs/{id}/events`: a stream for those who ask for one, else a page.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use common::ids::JobId;
use common::job::event::Event;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::follow::Follow;
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::problem::{Code, Document, FieldError, Problem};
use crate::sse;
use crate::state::App;

const LAST_EVENT_ID: &str = "last-event-id";
/// Events of a page that gives no `limit`.
const LIMIT_DEFAULT: usize = 1_000;
/// Most events of one page.
const LIMIT_MAX: usize = 10_000;

/// A page of a job's log.
#[derive(Serialize, ToSchema)]
struct EventPage {
    /// The events, in order.
    #[schema(value_type = Vec<EventDocument>)]
    data: Vec<Event>,
    /// Give it as `after` to get what follows; `null` when there is nothing more yet.
    next_cursor: Option<String>,
    /// Whether the job has ended and this page reaches the end.
    ended: bool,
}

/// One event. Each type has more fields of its own.
#[derive(Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventDocument {
    /// Its number: strictly increasing within a job.
    seq: u64,
    /// When it happened.
    at: chrono::DateTime<chrono::Utc>,
    /// The attempt that it belongs to; 0 before the first.
    attempt: u32,
    /// What happened: `queued`, `started`, `status`, `stdout`, `stderr`, `message.delta`, `message`,
    /// `reasoning.delta`, `tool.started`, `tool.output`, `tool.finished`, `usage`, `waiting`, `retrying`,
    /// `attempt_reset`, `resume_gap`, and one of `succeeded`, `failed`, `cancelled` at the end.
    #[serde(rename = "type")]
    kind: String,
    /// The fields of the type.
    #[serde(flatten)]
    fields: Value,
}

/// Follow a job.
///
/// With `Accept: text/event-stream` the whole log is streamed, live, and ends after the terminal event; `Last-Event-ID`
/// or `after` resumes, and a reconnect at or past the end is answered with 204. Else this is a page of the log.
#[utoipa::path(get, path = "/jobs/{id}/events", tag = "events",
    params(("id" = String, Path, description = "The job"),
        ("after" = Option<u64>, Query, description = "Only events after this number"),
        ("limit" = Option<u32>, Query, description = "Most events of a page, 1 to 10000; 1000"),
        ("token" = Option<String>, Query, description = "A stream token, for those who cannot send headers"),
        ("Last-Event-ID" = Option<u64>, Header, description = "Only events after this number; wins over `after`")),
    responses(
        (status = 200, description = "A page, or a stream", content((EventPage = "application/json"), (String = "text/event-stream"))),
        (status = 204, description = "The job has ended and there is nothing after this number"),
        (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn events(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if caller.only_job.is_some_and(|only| only != id) {
        return Err(Problem::new(
            Code::Forbidden,
            "the token is for the stream of another job",
        ));
    }
    drop(params.text("token"));
    let (after, cursor) = (
        params.parsed::<u64>("after", "the number of an event"),
        params.parsed("cursor", "a cursor of ours"),
    );
    let limit = params.read_as("limit", &format!("a number between 1 and {LIMIT_MAX}"), |text| {
        text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
    });
    params.finish()?;
    let after = last_event_id(&headers)?.or(after).or(cursor).unwrap_or(0);
    if sse::is_wanted(&headers) {
        return Ok(match Follow::start(app, &caller, id, after).await? {
            Some(follow) => sse::response(follow.frames()),
            None => StatusCode::NO_CONTENT.into_response(),
        });
    }
    let page = app
        .log()
        .read(caller.tenant_id(), id, after, limit.unwrap_or(LIMIT_DEFAULT))
        .await?;
    let page = page.ok_or_else(|| Problem::not_found("job"))?;
    let next_cursor = page
        .events
        .last()
        .filter(|_| page.more)
        .map(|event| event.seq.to_string());
    Ok(Json(EventPage {
        data: page.events,
        next_cursor,
        ended: page.ended,
    })
    .into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    match value.to_str().unwrap_or_default() {
        // A browser that has seen no id yet sends none, but an empty one is a valid value of the header.
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_garbage| {
            Problem::invalid(vec![FieldError::header(
                "Last-Event-ID",
                "is not the number of an event",
            )])
        }),
    }
}
