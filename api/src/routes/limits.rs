//! Limits: of queues and agents, and keys that are paused until a time.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::AgentId;
use common::job::exec::is_name;
use common::job::limit::{Limit, Subject};
use common::store::limits::KeyPause;
use common::store::queues::QueuePatch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::operating::{QueueView, read_queue};
use super::tenants::present;
use super::{List, Resource};
use crate::auth::{Admin, Caller};
use crate::extract::{Params, PathId, PathSteps, ValidJson};
use crate::job::{duration, is_short_text};
use crate::problem::{Document, FieldError, Problem};
use crate::state::App;

/// The longest pause of a key.
const PAUSE_MAX: Duration = Duration::from_hours(24 * 90);
/// The longest window of a rate.
const WINDOW_MAX: Duration = Duration::from_hours(24);
/// Most starts within a window: each of the last ones is remembered.
const STARTS_MAX: u32 = 10_000;

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(agent_limits, set_agent_limits))
        .routes(routes!(paused_keys, pause_key, resume_key))
}

/// Jobs that start within a window of time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateView {
    /// How many may start within any window; 1 to 10,000.
    #[schema(minimum = 1, maximum = 10000)]
    pub(crate) limit: u32,
    /// How long the window is; 1ms to 24h.
    #[schema(example = "1m")]
    pub(crate) window: String,
}

impl RateView {
    pub(crate) fn new((limit, window): (u32, Duration)) -> Self {
        Self {
            limit,
            window: humantime::format_duration(window).to_string(),
        }
    }

    /// The limit and the window, when both can be used.
    pub(crate) fn checked(&self, pointer: &str) -> Result<(u32, Duration), Vec<FieldError>> {
        let mut errors = Vec::new();
        if !(1..=STARTS_MAX).contains(&self.limit) {
            errors.push(FieldError::body(
                format!("{pointer}/limit"),
                format!("is between 1 and {STARTS_MAX}"),
            ));
        }
        let at = format!("{pointer}/window");
        let window = duration(&at, &self.window).and_then(|window| {
            let is_usable = (Duration::from_millis(1)..=WINDOW_MAX).contains(&window);
            if is_usable {
                Ok(window)
            } else {
                Err(FieldError::body(at, "is between 1ms and 24h"))
            }
        });
        match window {
            Ok(window) if errors.is_empty() => return Ok((self.limit, window)),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        Err(errors)
    }
}

/// What of a queue is changed; what is absent stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::option_option, reason = "absent and null mean different things in a patch")]
pub(super) struct QueueRequest {
    /// Its share of the free slots relative to other queues: 1 to 1000.
    weight: Option<u32>,
    /// Jobs that may run at once, whosever they are, at least 1; `null` is no limit. Split over the shards of Redis.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    max_running: Option<Option<u32>>,
    /// Jobs that may start within a window; `null` is no limit. Split over the shards of Redis.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<RateView>)]
    rate: Option<Option<RateView>>,
}

impl QueueRequest {
    fn checked(self) -> Result<QueuePatch, Problem> {
        let mut errors = Vec::new();
        if self.weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
            errors.push(FieldError::body("/weight", "is between 1 and 1000"));
        }
        errors.extend(faulty_limit("/max_running", self.max_running.flatten()));
        let rate = self.rate.map(|rate| rate.map(|rate| rate.checked("/rate")).transpose());
        let rate = match rate.transpose() {
            Ok(rate) => rate,
            Err(faults) => {
                errors.extend(faults);
                None
            }
        };
        if errors.is_empty() {
            Ok(QueuePatch {
                weight: self.weight,
                max_running: self.max_running,
                rate,
            })
        } else {
            Err(Problem::invalid(errors))
        }
    }
}

fn faulty_limit(pointer: &str, limit: Option<u32>) -> Option<FieldError> {
    let is_faulty = limit.is_some_and(|n| n == 0 || n > i32::MAX.unsigned_abs());
    is_faulty.then(|| FieldError::body(pointer, "is between 1 and 2147483647, or null"))
}

/// Makes a limit known to Redis, which may be away: the redispatch duty sets limits again.
pub(super) async fn tell(app: &App, subject: &Subject, limit: &Limit) {
    if let Err(error) = app.queue().tell_limit(subject, limit).await {
        tracing::debug!(%error, "redis does not know of a limit yet");
    }
}

/// Change a queue: its weight and its limits, for all tenants.
#[utoipa::path(patch, path = "/queues/{name}", tag = "operating", request_body = QueueRequest,
    params(("name" = String, Path, description = "The queue")),
    responses(
        (status = 200, body = QueueView),
        (status = 403, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn update_queue(
    State(app): State<App>,
    Admin(caller): Admin,
    steps: PathSteps,
    ValidJson(request): ValidJson<QueueRequest>,
) -> Result<Response, Problem> {
    let name = steps.get("name");
    if !is_name(name) {
        return Err(Problem::not_found("queue"));
    }
    let settings = app
        .store()
        .update_queue(name, request.checked()?, app.clock().now())
        .await?;
    if let Err(error) = app.queue().set_queue_weight(name, settings.weight).await {
        tracing::debug!(%error, "redis does not know of a weight yet");
    }
    tell(&app, &Subject::Queue(name.to_owned()), &settings.limit()).await;
    Ok(Json(read_queue(&app, &caller, name).await?).into_response())
}

/// The limits of an agent.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentLimits {
    /// Runs and turns of it that may run at once, at least 1; `null` is no limit.
    max_running: Option<u32>,
}

/// Get the limits of an agent.
#[utoipa::path(get, path = "/agents/{id}/limits", tag = "agents",
    params(("id" = String, Path, description = "The agent")),
    responses(
        (status = 200, body = AgentLimits),
        (status = 404, body = Document, content_type = "application/problem+json")))]
async fn agent_limits(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let found = app.store().agent_max_running(caller.tenant_id(), id).await?;
    let max_running = found.ok_or_else(|| Problem::not_found("agent"))?;
    Ok(Json(AgentLimits { max_running }).into_response())
}

/// Set the limits of an agent. They are no part of its definition and make no version.
#[utoipa::path(put, path = "/agents/{id}/limits", tag = "agents", request_body = AgentLimits,
    params(("id" = String, Path, description = "The agent")),
    responses(
        (status = 200, body = AgentLimits),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn set_agent_limits(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    ValidJson(limits): ValidJson<AgentLimits>,
) -> Result<Response, Problem> {
    if let Some(fault) = faulty_limit("/max_running", limits.max_running) {
        return Err(Problem::invalid(vec![fault]));
    }
    let tenant_id = caller.tenant_id();
    if !app
        .store()
        .set_agent_max_running(tenant_id, id, limits.max_running)
        .await?
    {
        return Err(Problem::not_found("agent"));
    }
    let limit = Limit {
        max_running: limits.max_running,
        ..Limit::default()
    };
    tell(&app, &Subject::Agent(tenant_id, id), &limit).await;
    Ok(Json(limits).into_response())
}

/// A key of which nothing starts for a while.
#[derive(Serialize, ToSchema)]
struct PausedKey {
    key: String,
    /// When it ends; `null` is until somebody resumes it.
    until: Option<DateTime<Utc>>,
    reason: String,
    created_at: DateTime<Utc>,
}

impl From<KeyPause> for PausedKey {
    fn from(pause: KeyPause) -> Self {
        let KeyPause {
            key,
            until,
            reason,
            created_at,
        } = pause;
        Self {
            key,
            until,
            reason,
            created_at,
        }
    }
}

/// A pause of a key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PauseRequest {
    /// The key, as jobs name it in `concurrency` or `rate`.
    key: String,
    /// When it ends, at most 90 days ahead; this, or `for`, or neither: until somebody resumes it.
    until: Option<DateTime<Utc>>,
    /// How long it lasts.
    #[serde(rename = "for")]
    #[schema(example = "30s")]
    lasts: Option<String>,
    /// Why.
    reason: Option<String>,
}

impl PauseRequest {
    fn checked(self, now: DateTime<Utc>) -> Result<KeyPause, Problem> {
        if !is_short_text(&self.key) {
            return Err(Problem::field("/key", "is 1 to 200 characters without NUL"));
        }
        if self
            .reason
            .as_deref()
            .is_some_and(|reason| !reason.is_empty() && !is_short_text(reason))
        {
            return Err(Problem::field("/reason", "is up to 200 characters without NUL"));
        }
        let lasts = self.lasts.as_deref().map(|text| duration("/for", text)).transpose();
        let lasts = lasts.map_err(|error| Problem::invalid(vec![error]))?;
        let until = match (self.until, lasts) {
            (Some(_), Some(_)) => return Err(Problem::field("/for", "cannot be combined with until")),
            (Some(until), None) if until > now + PAUSE_MAX => {
                return Err(Problem::field("/until", "is more than 90 days ahead"));
            }
            (None, Some(lasts)) if lasts > PAUSE_MAX => return Err(Problem::field("/for", "is more than 90 days")),
            (None, Some(lasts)) => Some(now + lasts),
            (until, None) => until,
        };
        Ok(KeyPause {
            key: self.key,
            until,
            reason: self.reason.unwrap_or_default(),
            created_at: now,
        })
    }
}

/// List the caller's keys that are paused.
#[utoipa::path(get, path = "/paused-keys", tag = "operating", responses((status = 200, body = List<PausedKey>)))]
async fn paused_keys(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let keys = app.store().paused_keys(caller.tenant_id(), app.clock().now()).await?;
    Ok(Json(List::whole(keys.into_iter().map(PausedKey::from).collect())).into_response())
}

/// Pause a key: nothing of the caller's that names it starts until a time. What runs goes on.
///
/// Pausing it again moves the end.
#[utoipa::path(post, path = "/paused-keys", tag = "operating", request_body = PauseRequest,
    responses((status = 200, body = PausedKey), (status = 422, body = Document, content_type = "application/problem+json")))]
async fn pause_key(
    State(app): State<App>,
    caller: Caller,
    ValidJson(request): ValidJson<PauseRequest>,
) -> Result<Response, Problem> {
    let pause = request.checked(app.clock().now())?;
    app.store().pause_key(caller.tenant_id(), &pause).await?;
    let subject = Subject::Key(caller.tenant_id(), pause.key.clone());
    tell(&app, &subject, &pause.limit()).await;
    Ok(Json(PausedKey::from(pause)).into_response())
}

/// Resume a key that is paused.
#[utoipa::path(delete, path = "/paused-keys", tag = "operating", params(("key" = String, Query, description = "The key")),
    responses(
        (status = 204),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn resume_key(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let key = params.text("key");
    params.finish()?;
    let key = key.ok_or_else(|| Problem::invalid(vec![FieldError::query("key", "is missing")]))?;
    let was_paused = app.store().resume_key(caller.tenant_id(), &key).await?;
    tell(&app, &Subject::Key(caller.tenant_id(), key), &Limit::default()).await;
    if was_paused {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Problem::not_found("key"))
    }
}
