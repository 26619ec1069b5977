//! `GET /jobs/{id}/egress`: what a job's sandbox wanted to connect to, and what became of it.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::JobId;
use common::store::egress::{Decision, Place};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::read;
use crate::auth::Caller;
use crate::extract::{Cursor, Params, PathId};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

/// One connection of a sandbox.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EgressView {
    /// The attempt.
    attempt: u32,
    /// Its number in the attempt, from 1.
    seq: u32,
    /// When it came.
    at: DateTime<Utc>,
    /// The method of its request, `CONNECT` for TLS; `null` when no request could be read.
    method: Option<String>,
    /// The host that it asked for.
    host: Option<String>,
    /// The port that it asked for.
    port: Option<u16>,
    /// The address that was dialled.
    address: Option<String>,
    /// Whether it was allowed.
    allowed: bool,
    /// Why it was refused, or cut after it was allowed.
    reason: Option<String>,
    /// Bytes of the sandbox that were passed on.
    sent_bytes: u64,
    /// Bytes of the host that were passed on.
    received_bytes: u64,
    /// How long it lasted; `null` while it is open.
    duration_ms: Option<u64>,
}

impl From<Decision> for EgressView {
    fn from(decision: Decision) -> Self {
        Self {
            attempt: decision.attempt,
            seq: decision.seq,
            at: decision.at,
            method: decision.method,
            host: decision.host,
            port: decision.port,
            address: decision.address,
            allowed: decision.is_allowed,
            reason: decision.reason,
            sent_bytes: decision.sent_bytes,
            received_bytes: decision.received_bytes,
            duration_ms: decision
                .duration
                .map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

/// List what a job's sandbox wanted to connect to.
///
/// One item for each connection, allowed or not, in the order in which they came; those under way are written down within
/// a second.
#[utoipa::path(get, path = "/jobs/{id}/egress", tag = "jobs",
    params(("id" = String, Path, description = "The job"),
        ("limit" = Option<u32>, Query, description = "Most items of the page"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, body = List<EgressView>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<JobId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let (limit, after) = (params.limit(), params.cursor::<Uuid>());
    params.finish()?;
    read::read(&app, &caller, id).await?;
    let mut decisions = app
        .store()
        .egress(id, after.map_or((0, 0), place), limit.saturating_add(1))
        .await?;
    let has_more = decisions.len() > limit as usize;
    decisions.truncate(limit as usize);
    let last = decisions.last().filter(|_| has_more);
    let next_cursor = last.map(|last| Cursor::encode(Uuid::from_u64_pair(last.attempt.into(), last.seq.into())));
    let data: Vec<EgressView> = decisions.into_iter().map(EgressView::from).collect();
    Ok(Json(List { data, next_cursor }).into_response())
}

/// A cursor holds an id; here it is the two numbers of the last item.
fn place(cursor: Uuid) -> Place {
    let (attempt, seq) = cursor.as_u64_pair();
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    (number(attempt), number(seq))
}
