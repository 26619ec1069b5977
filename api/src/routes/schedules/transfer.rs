//! Export and import: schedules as JSON, to keep and to carry elsewhere.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::ScheduleId;
use common::schedule::{Misfire, Overlap, Schedule};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::request::{ScheduleRequest, Settings};
use super::target::{JobTarget, asked};
use crate::auth::Caller;
use crate::extract::{Cursor, Params, RawBody, from_json};
use crate::job::below;
use crate::problem::{Code, Document, FieldError, Problem};
use crate::state::App;

/// What this writes, and reads.
const FORMAT: u32 = 1;

/// Most schedules of one import.
const IMPORT_MAX: usize = 1_000;

/// Schedules without what became of them.
#[derive(Serialize, ToSchema)]
#[schema(as = ScheduleExport)]
pub(super) struct Export<'a> {
    /// The format: 1.
    version: u32,
    /// The schedules, newest first.
    schedules: Vec<Exported<'a>>,
    /// Give it as `cursor` to get the rest.
    next_cursor: Option<String>,
}

/// Everything that a submitter decided about a schedule. Values of `env` are hidden.
#[derive(Serialize, ToSchema)]
#[schema(as = ExportedSchedule)]
struct Exported<'a> {
    id: Uuid,
    name: &'a str,
    cron: &'a str,
    timezone: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conversation_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobTarget<'a>>,
    overlap: Overlap,
    catch_up: String,
    misfire: Misfire,
    jitter: String,
    starts_at: Option<DateTime<Utc>>,
    ends_at: Option<DateTime<Utc>>,
    max_fires: Option<u64>,
    pause_after_failures: Option<u32>,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_reason: Option<&'a str>,
}

impl<'a> Exported<'a> {
    fn new(schedule: &'a Schedule) -> Self {
        let (timing, target) = (&schedule.timing, &schedule.target);
        let asked = asked(target);
        let by_name = asked.is_some();
        Self {
            id: schedule.id.uuid(),
            name: &schedule.name,
            cron: timing.cron.expression(),
            timezone: timing.cron.zone(),
            agent_id: target.agent_id.filter(|_| by_name).map(Uuid::from),
            conversation_id: target.conversation_id.filter(|_| by_name).map(Uuid::from),
            input: asked,
            job: JobTarget::new(target, true),
            overlap: schedule.overlap,
            catch_up: humantime::format_duration(timing.catch_up).to_string(),
            misfire: timing.misfire,
            jitter: humantime::format_duration(timing.jitter).to_string(),
            starts_at: timing.starts_at,
            ends_at: timing.ends_at,
            max_fires: timing.max_fires,
            pause_after_failures: schedule.pause_after_failures,
            enabled: schedule.enabled,
            paused_reason: schedule.paused_reason.as_deref(),
        }
    }
}

/// Export schedules.
#[utoipa::path(get, path = "/schedules/export", tag = "schedules",
    params(("limit" = Option<u32>, Query, description = "Most items, 1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "The last page's `next_cursor`")),
    responses(
        (status = 200, body = Export<'static>),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn export(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let (limit, before) = (params.limit(), params.cursor::<ScheduleId>());
    params.finish()?;
    let mut found = app.store().schedules(caller.tenant_id(), before, limit + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let export = Export {
        version: FORMAT,
        schedules: found.iter().map(|(schedule, _)| Exported::new(schedule)).collect(),
        next_cursor: found.last().filter(|_| more).map(|(last, _)| Cursor::encode(last.id)),
    };
    Ok(Json(export).into_response())
}

/// What is imported: an export as it is, or as somebody edited it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportRequest {
    /// The format: 1.
    version: Option<u32>,
    /// Up to 1,000 schedules as they are made, each with an `id` if it has one, and its `paused_reason`.
    #[schema(value_type = Vec<ScheduleRequest>)]
    schedules: Vec<Box<RawValue>>,
    /// Only check.
    #[serde(default)]
    dry_run: bool,
    /// As an export has it; not looked at.
    #[serde(default, rename = "next_cursor")]
    _next_cursor: Option<String>,
}

/// What an import did.
#[derive(Serialize, ToSchema)]
pub(super) struct ImportView {
    /// Schedules that are new.
    created: usize,
    /// Schedules that were there and are changed.
    updated: usize,
    /// Their ids, in the order of the request.
    ids: Vec<Uuid>,
}

/// One entry that was checked.
enum Entry {
    New(Box<Schedule>),
    Changed { schedule: Box<Schedule>, reschedule: bool },
}

/// Import schedules: all of them, or none when one is at fault.
///
/// One with the `id` of a schedule of the caller's changes it, so the same import twice is the same as once. Others are
/// made anew, with their id unless it is taken. One whose time has passed may be among them: it fires no more.
#[utoipa::path(post, path = "/schedules/import", tag = "schedules", request_body = ImportRequest,
    responses(
        (status = 200, body = ImportView),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn import(State(app): State<App>, caller: Caller, body: RawBody) -> Result<Response, Problem> {
    let request: ImportRequest = from_json(body.text(), "")?;
    if request.version.is_some_and(|version| version != FORMAT) {
        return Err(Problem::field("/version", format!("is {FORMAT}")));
    }
    if request.schedules.is_empty() || request.schedules.len() > IMPORT_MAX {
        return Err(Problem::field("/schedules", format!("has 1 to {IMPORT_MAX} items")));
    }
    let entries = check(&app, &caller, &request.schedules).await?;
    let view = ImportView {
        created: entries.iter().filter(|entry| matches!(entry, Entry::New(_))).count(),
        updated: entries
            .iter()
            .filter(|entry| matches!(entry, Entry::Changed { .. }))
            .count(),
        ids: entries.iter().map(|entry| entry.schedule().id.uuid()).collect(),
    };
    if !request.dry_run {
        save(&app, entries).await?;
    }
    Ok(Json(view).into_response())
}

impl Entry {
    fn schedule(&self) -> &Schedule {
        match self {
            Self::New(schedule) | Self::Changed { schedule, .. } => schedule,
        }
    }
}

async fn save(app: &App, entries: Vec<Entry>) -> Result<(), Problem> {
    let mut new = Vec::new();
    for entry in entries {
        match entry {
            Entry::New(schedule) => new.push(*schedule),
            Entry::Changed { schedule, reschedule } => {
                if !app
                    .store()
                    .update_schedule(&schedule, schedule.version, reschedule)
                    .await?
                {
                    let detail = format!("schedule {} is being changed by others: import again", schedule.id);
                    return Err(Problem::new(Code::Conflict, detail));
                }
            }
        }
    }
    app.store().create_schedules(&new).await?;
    Ok(())
}

/// Reads every entry, and names every fault of all of them.
async fn check(app: &App, caller: &Caller, entries: &[Box<RawValue>]) -> Result<Vec<Entry>, Problem> {
    let mut read = Vec::with_capacity(entries.len());
    for (index, json) in entries.iter().enumerate() {
        read.push(Given::read(json.get(), &format!("/schedules/{index}"))?);
    }
    let ids: Vec<ScheduleId> = read.iter().filter_map(|given| given.id).collect();
    let known = app.store().schedule_ids(caller.tenant_id(), &ids).await?;
    let (mut checked, mut errors, mut seen) = (Vec::with_capacity(read.len()), Vec::new(), HashMap::new());
    for (index, given) in read.into_iter().enumerate() {
        let base = format!("/schedules/{index}");
        if let Some(other) = given.id.and_then(|id| seen.insert(id, index)) {
            errors.push(FieldError::body(
                format!("{base}/id"),
                format!("is that of /schedules/{other}"),
            ));
            continue;
        }
        match given.entry(app, caller, &known).await {
            Ok(entry) => checked.push(entry),
            Err(problem) if problem.code() == Code::InvalidRequest => {
                errors.extend(below(&base, problem.document().errors));
            }
            Err(problem) if problem.code() == Code::Unavailable => return Err(problem),
            Err(problem) => {
                let detail = problem.document().detail;
                errors.push(FieldError::body(base, detail));
            }
        }
    }
    if errors.is_empty() {
        Ok(checked)
    } else {
        Err(Problem::invalid(errors))
    }
}

/// One entry as it was written.
struct Given {
    id: Option<ScheduleId>,
    paused_reason: Option<String>,
    request: ScheduleRequest,
}

impl Given {
    fn read(json: &str, base: &str) -> Result<Self, Problem> {
        let mut fields: Map<String, Value> = from_json(json, base)?;
        let refused = |field: &str, detail: &str| Problem::field(format!("{base}/{field}"), detail);
        let id = match fields.remove("id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id.parse().map_err(|_garbage| refused("id", "is not an id"))?),
            Some(_) => return Err(refused("id", "is not an id")),
        };
        let paused_reason = match fields.remove("paused_reason") {
            None | Some(Value::Null) => None,
            Some(Value::String(reason)) if !reason.contains('\0') && reason.chars().count() <= 1_000 => Some(reason),
            Some(_) => return Err(refused("paused_reason", "is at most 1000 characters without NUL")),
        };
        Ok(Self {
            id,
            paused_reason,
            request: from_json(&Value::Object(fields).to_string(), base)?,
        })
    }

    async fn entry(self, app: &App, caller: &Caller, known: &HashMap<ScheduleId, bool>) -> Result<Entry, Problem> {
        let now = app.clock().now();
        let own = self.id.filter(|id| known.get(id) == Some(&true));
        let old = match own {
            Some(id) => app.store().schedule(caller.tenant_id(), id).await?,
            None => None,
        };
        let settings = old.as_ref().map(|(old, _)| Settings::of(old));
        let settings = self.request.settings(app, caller, settings.as_ref()).await?;
        let Some((mut schedule, _)) = old else {
            let id = self
                .id
                .filter(|id| !known.contains_key(id))
                .unwrap_or_else(ScheduleId::new);
            let mut schedule = settings.schedule(id, caller.tenant_id(), now);
            schedule.paused_reason = self.paused_reason.filter(|_| !schedule.enabled);
            return Ok(Entry::New(Box::new(schedule)));
        };
        let (timing, enabled) = (schedule.timing.clone(), schedule.enabled);
        settings.change(&mut schedule);
        if !schedule.enabled {
            schedule.paused_reason = self.paused_reason;
        }
        schedule.updated_at = now;
        let reschedule = enabled != schedule.enabled || !timing.is_due_like(&schedule.timing);
        if reschedule {
            schedule.next_fire_at = schedule.first(now);
        }
        let schedule = Box::new(schedule);
        Ok(Entry::Changed { schedule, reschedule })
    }
}
