//! The body that makes or changes a schedule.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::cron::{self, Cron};
use common::ids::{ScheduleId, TenantId};
use common::schedule::{Form, Misfire, Overlap, Schedule, Target, Timing};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::given::{Given, length, moment};
use super::target;
use crate::auth::Caller;
use crate::extract::{RawBody, from_json};
use crate::problem::{FieldError, Problem};
use crate::state::App;

const CATCH_UP_MAX: Duration = Duration::from_hours(366 * 24);
const JITTER_MAX: Duration = Duration::from_hours(24);
const EXPRESSION_MAX: usize = 500;
const COUNT_MAX: u64 = 1_000_000_000;

/// A schedule as it is made or changed. In a change, what is left out stays as it is, and `null` is the default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleRequest {
    /// 1 to 200 characters; the expression.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    name: Given<String>,
    /// Five fields as crontab(5) reads them, six with seconds in front, `@daily` and its like, `every 90s`, or
    /// `at 2026-12-01T09:00` for once.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "*/15 9-17 * * MON-FRI")]
    cron: Given<String>,
    /// A time for a schedule that fires once: `2026-12-01T09:00` on the wall of the zone, or with an offset. It is
    /// short for the expression `at 2026-12-01T09:00`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "2026-12-01T09:00")]
    at: Given<String>,
    /// A name of the IANA database; `UTC`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "Europe/Berlin")]
    timezone: Given<String>,
    /// A saved agent to run, in its version of each fire; with `input`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    agent_id: Given<String>,
    /// A conversation to take a turn in, answered by its agent as it is at each fire; with `input`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    conversation_id: Given<String>,
    /// What the agent is asked, or what is said in the conversation. Strings of an input may hold templates such as
    /// `{{ fire_at }}` and `{{ last_result }}`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    input: Given<String>,
    /// A job as for `POST /jobs`, without `run_at` and `delay`; instead of an agent or a conversation. Its kind may also
    /// be `chat_turn`, with `conversation_id` and `text` or `parts` as its input.
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
    /// Which due times within `catch_up` are fired after a downtime; `all`.
    #[serde(default)]
    #[schema(value_type = Option<Misfire>)]
    misfire: Given<Misfire>,
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
    /// After so many jobs it is over; `null` is no limit. Fires by hand and backfills do not count.
    #[serde(default)]
    #[schema(value_type = Option<u64>, minimum = 1)]
    max_fires: Given<u64>,
    /// After so many failed jobs in a row it is paused; `null` is never.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pause_after_failures: Given<u32>,
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
    pub(super) pause_after_failures: Option<u32>,
    pub(super) enabled: bool,
}

impl Settings {
    /// Those of a saved schedule.
    pub(super) fn of(schedule: &Schedule) -> Self {
        Self {
            name: schedule.name.clone(),
            timing: schedule.timing.clone(),
            target: schedule.target.clone(),
            overlap: schedule.overlap,
            pause_after_failures: schedule.pause_after_failures,
            enabled: schedule.enabled,
        }
    }

    /// A new schedule with these settings.
    pub(super) fn schedule(self, id: ScheduleId, tenant_id: TenantId, now: DateTime<Utc>) -> Schedule {
        let mut schedule = Schedule {
            id,
            tenant_id,
            name: self.name,
            timing: self.timing,
            target: self.target,
            overlap: self.overlap,
            enabled: self.enabled,
            paused_reason: None,
            next_fire_at: None,
            last_fire_at: None,
            last_job_id: None,
            prior_job_id: None,
            fired: 0,
            pause_after_failures: self.pause_after_failures,
            failures_in_row: 0,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        schedule.next_fire_at = schedule.first(now);
        schedule
    }

    /// Changes a saved schedule to these settings.
    pub(super) fn change(self, schedule: &mut Schedule) {
        schedule.name = self.name;
        schedule.timing = self.timing;
        schedule.target = self.target;
        schedule.overlap = self.overlap;
        schedule.pause_after_failures = self.pause_after_failures;
        schedule.enabled = self.enabled;
        if self.enabled {
            schedule.paused_reason = None;
        }
    }
}

/// Refuses an enabled schedule that no due time lies ahead of.
///
/// # Errors
/// 422 that names the field that ends it.
pub(super) fn must_fire(schedule: &Schedule, now: DateTime<Utc>) -> Result<(), Problem> {
    if !schedule.enabled || schedule.next_fire_at.is_some() {
        return Ok(());
    }
    let (field, detail) = if schedule.fires_left() == 0 {
        ("/max_fires", format!("is reached: {} jobs were made", schedule.fired))
    } else if schedule.timing.ends_at.is_some_and(|ends_at| ends_at <= now) {
        ("/ends_at", "has passed: nothing would ever fire".to_owned())
    } else if schedule.timing.ends_at.is_some() || schedule.timing.starts_at.is_some() {
        ("/cron", "never fires between starts_at and ends_at".to_owned())
    } else {
        ("/cron", "never fires: its time has passed".to_owned())
    };
    Err(Problem::field(field, detail))
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
        let pause_after_failures = match &self.pause_after_failures {
            Given::Absent => old.and_then(|old| old.pause_after_failures),
            given => given.value().copied(),
        };
        if pause_after_failures.is_some_and(|count| !(1..=COUNT_MAX).contains(&u64::from(count))) {
            errors.push(FieldError::body(
                "/pause_after_failures",
                format!("is between 1 and {COUNT_MAX}"),
            ));
        }
        let target = match self.target(app, caller, old).await {
            Ok(target) => Some(target),
            Err(problem) if problem.code() == crate::problem::Code::InvalidRequest => {
                errors.extend(problem.document().errors);
                None
            }
            Err(problem) => return Err(problem),
        };
        if overlap.is_in_turn() && target.as_ref().is_some_and(|target| target.spec.concurrency.is_some()) {
            let detail =
                "cannot be combined with overlap queue or queue_all, which are a limit of one job of the schedule";
            errors.push(FieldError::body("/job/concurrency", detail));
        }
        match (timing, target) {
            (Some(timing), Some(target)) if errors.is_empty() => Ok(Settings {
                name,
                timing,
                target,
                overlap,
                pause_after_failures,
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
        if let Some(at) = self.at.value() {
            return Some(format!("at {at}"));
        }
        self.cron
            .value()
            .cloned()
            .or(if self.cron == Given::Absent { old } else { None })
    }

    fn timing(&self, old: Option<&Timing>, errors: &mut Vec<FieldError>) -> Option<Timing> {
        let expression = self.expression(old);
        if self.at.value().is_some() && self.cron.value().is_some() {
            errors.push(FieldError::body("/at", "cannot be combined with cron"));
        }
        if expression.is_none() {
            errors.push(FieldError::body("/cron", "is required"));
        }
        let zone = self
            .timezone
            .over(old.map(|old| old.cron.zone().to_owned()), || "UTC".to_owned());
        let cron = expression.and_then(|expression| or_note(read_cron(&expression, &zone), errors));
        let misfire = self.misfire.over(old.map(|old| old.misfire), Misfire::default);
        let max_fires = match &self.max_fires {
            Given::Absent => old.and_then(|old| old.max_fires),
            given => given.value().copied(),
        };
        if max_fires.is_some_and(|count| !(1..=COUNT_MAX).contains(&count)) {
            errors.push(FieldError::body("/max_fires", format!("is between 1 and {COUNT_MAX}")));
        }
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
            misfire,
            jitter: jitter?,
            starts_at,
            ends_at,
            max_fires,
        })
    }

    async fn target(&self, app: &App, caller: &Caller, old: Option<&Settings>) -> Result<Target, Problem> {
        let old = old.map(|old| &old.target);
        let (agent_id, talk_id) = (self.agent_id.value(), self.conversation_id.value());
        let input = self.input.value();
        if let Some(job) = self.job.value() {
            if agent_id.is_some() || talk_id.is_some() || input.is_some() {
                return Err(Problem::field(
                    "/job",
                    "cannot be combined with agent_id, conversation_id and input",
                ));
            }
            return target::of_job(app, caller, job.get(), old).await;
        }
        if agent_id.is_some() && talk_id.is_some() {
            return Err(Problem::field("/conversation_id", "cannot be combined with agent_id"));
        }
        if let Some(old) = old.filter(|_| agent_id.is_none() && talk_id.is_none() && input.is_none()) {
            return Ok(old.clone());
        }
        // Who is asked, and what: each stays where only the other is changed.
        let input = input.cloned().or_else(|| old.and_then(target::asked));
        let old_agent = old.filter(|old| old.form == Form::Agent).and_then(|old| old.agent_id);
        let old_talk = old
            .filter(|old| old.form == Form::Turn)
            .and_then(|old| old.conversation_id);
        let agent_id = agent_id
            .cloned()
            .or_else(|| old_agent.filter(|_| talk_id.is_none()).map(|id| id.to_string()));
        let talk_id = talk_id
            .cloned()
            .or_else(|| old_talk.filter(|_| agent_id.is_none()).map(|id| id.to_string()));
        match (agent_id, talk_id, input) {
            (Some(agent_id), _, Some(input)) => target::of_agent(app, caller, &agent_id, &input).await,
            (None, Some(talk_id), Some(input)) => target::of_turn(app, caller, &talk_id, &input).await,
            (Some(_), _, None) => Err(Problem::field("/input", "is required with agent_id")),
            (None, Some(_), None) => Err(Problem::field("/input", "is required with conversation_id")),
            (None, None, Some(_)) => Err(Problem::field(
                "/agent_id",
                "is required with input, or conversation_id",
            )),
            (None, None, None) => Err(Problem::field(
                "/job",
                "is required, or agent_id or conversation_id with input",
            )),
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
