//! The body that makes or changes a schedule.

use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use common::cron::{self, Cron};
use common::schedule::{Form, Overlap, Target, Timing};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::given::Given;
use super::target;
use crate::auth::Caller;
use crate::extract::{RawBody, from_json};
use crate::problem::{FieldError, Problem};
use crate::state::App;

const CATCH_UP_MAX: Duration = Duration::from_hours(366 * 24);
const JITTER_MAX: Duration = Duration::from_hours(24);
const EXPRESSION_MAX: usize = 500;

/// A schedule as it is made or changed. In a change, what is left out stays as it is, and `null` is the default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleRequest {
    /// 1 to 200 characters; the expression.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    name: Given<String>,
    /// Five fields as crontab(5) reads them, six with seconds in front, `@daily` and its like, or `every 90s`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "*/15 9-17 * * MON-FRI")]
    cron: Given<String>,
    /// A name of the IANA database; `UTC`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "Europe/Berlin")]
    timezone: Given<String>,
    /// A saved agent to run, in its version of each fire; with `input`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    agent_id: Given<String>,
    /// What the agent is asked.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    input: Given<String>,
    /// A job as for `POST /jobs`, without `run_at` and `delay`; instead of an agent.
    #[serde(default)]
    #[schema(value_type = Option<crate::job::JobRequest>)]
    job: Given<Box<RawValue>>,
    /// What happens while the last job has not ended; `skip`.
    #[serde(default)]
    #[schema(value_type = Option<Overlap>)]
    overlap: Given<Overlap>,
    /// How old a due time may be and still be fired after a downtime; `0s`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "1h")]
    catch_up: Given<String>,
    /// The longest time by which fires are put off, always the same for one schedule; `0s`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "30s")]
    jitter: Given<String>,
    /// No fire before this.
    #[serde(default)]
    #[schema(value_type = Option<DateTime<Utc>>)]
    starts_at: Given<DateTime<Utc>>,
    /// No fire after this.
    #[serde(default)]
    #[schema(value_type = Option<DateTime<Utc>>)]
    ends_at: Given<DateTime<Utc>>,
    /// Whether it fires; `true`.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    enabled: Given<bool>,
}

/// Everything that a submitter decides about a schedule.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) timing: Timing,
    pub(super) target: Target,
    pub(super) overlap: Overlap,
    pub(super) enabled: bool,
}

impl ScheduleRequest {
    /// Reads a body. An array is refused: serde would take it for the fields in their order.
    ///
    /// # Errors
    /// 400 when it is not JSON, 422 with a pointer when it has another shape.
    pub(super) fn read(body: &RawBody) -> Result<Self, Problem> {
        if !body.text().trim_start().starts_with('{') {
            from_json::<Map<String, Value>>(body.text(), "")?;
        }
        from_json(body.text(), "")
    }

    /// The settings of a new schedule, or of `old` with what this changes.
    ///
    /// # Errors
    /// 422 that names every field at fault; what the target is refused with.
    pub(super) async fn settings(
        self,
        app: &App,
        caller: &Caller,
        old: Option<&Settings>,
    ) -> Result<Settings, Problem> {
        let mut errors = Vec::new();
        let timing = self.timing(old.map(|old| &old.timing), &mut errors);
        let overlap = self.overlap.over(old.map(|old| old.overlap), Overlap::default);
        let enabled = self.enabled.over(old.map(|old| old.enabled), || true);
        let name = self.name(old, &mut errors);
        let target = match self.target(app, caller, old).await {
            Ok(target) => Some(target),
            Err(problem) if problem.code() == crate::problem::Code::InvalidRequest => {
                errors.extend(problem.document().errors);
                None
            }
            Err(problem) => return Err(problem),
        };
        if overlap == Overlap::Queue && target.as_ref().is_some_and(|target| target.spec.concurrency.is_some()) {
            let detail = "cannot be combined with overlap queue, which is a limit of one job of the schedule";
            errors.push(FieldError::body("/job/concurrency", detail));
        }
        match (timing, target) {
            (Some(timing), Some(target)) if errors.is_empty() => Ok(Settings {
                name,
                timing,
                target,
                overlap,
                enabled,
            }),
            _ => Err(Problem::invalid(errors)),
        }
    }

    fn name(&self, old: Option<&Settings>, errors: &mut Vec<FieldError>) -> String {
        if self
            .name
            .value()
            .is_some_and(|name| name.contains('\0') || !(1..=200).contains(&name.chars().count()))
        {
            errors.push(FieldError::body("/name", "is 1 to 200 characters without NUL"));
        }
        let expression = self.expression(old.map(|old| &old.timing)).unwrap_or_default();
        self.name.over(old.map(|old| old.name.clone()), || {
            expression.chars().take(200).collect()
        })
    }

    fn expression(&self, old: Option<&Timing>) -> Option<String> {
        let old = old.map(|old| old.cron.expression().to_owned());
        self.cron
            .value()
            .cloned()
            .or(if self.cron == Given::Absent { old } else { None })
    }

    fn timing(&self, old: Option<&Timing>, errors: &mut Vec<FieldError>) -> Option<Timing> {
        let expression = self.expression(old);
        if expression.is_none() {
            errors.push(FieldError::body("/cron", "is required"));
        }
        let zone = self
            .timezone
            .over(old.map(|old| old.cron.zone().to_owned()), || "UTC".to_owned());
        let cron = expression.and_then(|expression| or_note(read_cron(&expression, &zone), errors));
        let catch_up = length("/catch_up", &self.catch_up, old.map(|old| old.catch_up), CATCH_UP_MAX);
        let jitter = length("/jitter", &self.jitter, old.map(|old| old.jitter), JITTER_MAX);
        let starts_at = moment("/starts_at", &self.starts_at, old.and_then(|old| old.starts_at));
        let ends_at = moment("/ends_at", &self.ends_at, old.and_then(|old| old.ends_at));
        let (catch_up, jitter) = (or_note(catch_up, errors), or_note(jitter, errors));
        let (starts_at, ends_at) = (or_note(starts_at, errors)?, or_note(ends_at, errors)?);
        if let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at)
            && ends_at < starts_at
        {
            errors.push(FieldError::body("/ends_at", "is before starts_at"));
        }
        Some(Timing {
            cron: cron?,
            catch_up: catch_up?,
            jitter: jitter?,
            starts_at,
            ends_at,
        })
    }

    async fn target(&self, app: &App, caller: &Caller, old: Option<&Settings>) -> Result<Target, Problem> {
        let (agent_id, input) = (self.agent_id.value().cloned(), self.input.value().cloned());
        if let Some(job) = self.job.value() {
            if agent_id.is_some() || input.is_some() {
                return Err(Problem::field("/job", "cannot be combined with agent_id and input"));
            }
            return target::of_job(app, caller, job.get()).await;
        }
        let old = old.map(|old| &old.target);
        if let Some(old) = old.filter(|_| agent_id.is_none() && input.is_none()) {
            return Ok(old.clone());
        }
        let old = old.filter(|old| old.form == Form::Agent);
        let agent_id = agent_id.or_else(|| old.and_then(|old| old.agent_id).map(|id| id.to_string()));
        match (agent_id, input.or_else(|| old.and_then(target::asked))) {
            (Some(agent_id), Some(input)) => target::of_agent(app, caller, &agent_id, &input).await,
            (Some(_), None) => Err(Problem::field("/input", "is required with agent_id")),
            (None, Some(_)) => Err(Problem::field("/agent_id", "is required with input")),
            (None, None) => Err(Problem::field("/job", "is required, or agent_id and input")),
        }
    }
}

/// Reads an expression and its zone.
///
/// # Errors
/// Which of both is wrong, and how.
pub(super) fn read_cron(expression: &str, zone: &str) -> Result<Cron, FieldError> {
    if expression.len() > EXPRESSION_MAX {
        return Err(FieldError::body("/cron", format!("is over {EXPRESSION_MAX} bytes")));
    }
    Cron::parse(expression, zone).map_err(|error| {
        let pointer = if matches!(error, cron::Error::Zone { .. }) {
            "/timezone"
        } else {
            "/cron"
        };
        FieldError::body(pointer, error.to_string())
    })
}

fn or_note<T>(read: Result<T, FieldError>, errors: &mut Vec<FieldError>) -> Option<T> {
    read.map_err(|error| errors.push(error)).ok()
}

fn length(pointer: &str, given: &Given<String>, old: Option<Duration>, max: Duration) -> Result<Duration, FieldError> {
    let Some(text) = given.value() else {
        return Ok(old.filter(|_| *given == Given::Absent).unwrap_or_default());
    };
    let read = humantime::parse_duration(text);
    let read = read.map_err(|_garbage| FieldError::body(pointer, "is not a duration, such as \"90s\""))?;
    if read > max {
        let max = humantime::format_duration(max);
        return Err(FieldError::body(pointer, format!("is over {max}")));
    }
    // Milliseconds are what is stored.
    Ok(Duration::from_millis(
        u64::try_from(read.as_millis()).unwrap_or(u64::MAX),
    ))
}

fn moment(
    pointer: &str,
    given: &Given<DateTime<Utc>>,
    old: Option<DateTime<Utc>>,
) -> Result<Option<DateTime<Utc>>, FieldError> {
    match given {
        Given::Absent => Ok(old),
        Given::Null => Ok(None),
        Given::Value(at) if !(1970..=2200).contains(&at.year()) => {
            Err(FieldError::body(pointer, "is between 1970 and 2200"))
        }
        Given::Value(at) => Ok(DateTime::from_timestamp_micros(at.timestamp_micros())),
    }
}
