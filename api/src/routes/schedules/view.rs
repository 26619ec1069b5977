//! Schedules as everybody reads them.

use chrono::{DateTime, Utc};
use common::schedule::{Fire, Misfire, Overlap, Schedule};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::target::{JobTarget, asked};

/// Next fires in an answer.
const NEXT_FIRES: usize = 5;

/// A schedule. Lists leave out the job's input.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(super) struct ScheduleView<'a> {
    /// Its id.
    id: Uuid,
    /// Its name.
    name: &'a str,
    /// When it is due.
    cron: &'a str,
    /// The zone of `cron`.
    timezone: &'static str,
    /// The saved agent that it runs.
    agent_id: Option<Uuid>,
    /// The conversation that it takes a turn in.
    conversation_id: Option<Uuid>,
    /// What the agent is asked, or what is said in the conversation.
    input: Option<String>,
    /// The job that it submits, where it was not given as an agent or a conversation.
    job: Option<JobTarget<'a>>,
    /// What happens while the last job has not ended.
    overlap: Overlap,
    /// How old a due time may be and still be fired after a downtime.
    catch_up: String,
    /// Which due times of that age are fired.
    misfire: Misfire,
    /// The longest time by which fires are put off.
    jitter: String,
    /// No fire before this.
    starts_at: Option<DateTime<Utc>>,
    /// No fire after this.
    ends_at: Option<DateTime<Utc>>,
    /// After so many jobs it is over.
    max_fires: Option<u64>,
    /// Due times that made a job; fires by hand and backfills do not count.
    fired: u64,
    /// After so many failed jobs in a row it is paused.
    pause_after_failures: Option<u32>,
    /// Jobs that failed since the last that succeeded.
    failures_in_row: u32,
    /// Whether it fires.
    enabled: bool,
    /// Why it does not.
    paused_reason: Option<&'a str>,
    /// The next five due times, without jitter; empty while it is paused.
    next_fires: Vec<DateTime<Utc>>,
    /// What became of the last due time.
    last_fire: Option<&'a Fire>,
    /// The last job that it made.
    last_job_id: Option<Uuid>,
    /// Grows with each edit; the entity tag.
    version: u64,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// When it was edited last.
    updated_at: DateTime<Utc>,
}

impl<'a> ScheduleView<'a> {
    /// A schedule as a list shows it.
    pub(super) fn listed(schedule: &'a Schedule, last_fire: Option<&'a Fire>) -> Self {
        let timing = &schedule.timing;
        Self {
            id: schedule.id.uuid(),
            name: &schedule.name,
            cron: timing.cron.expression(),
            timezone: timing.cron.zone(),
            agent_id: schedule.target.agent_id.map(Uuid::from),
            conversation_id: schedule.target.conversation_id.map(Uuid::from),
            input: None,
            job: JobTarget::new(&schedule.target, false),
            overlap: schedule.overlap,
            catch_up: humantime::format_duration(timing.catch_up).to_string(),
            misfire: timing.misfire,
            jitter: humantime::format_duration(timing.jitter).to_string(),
            starts_at: timing.starts_at,
            ends_at: timing.ends_at,
            max_fires: timing.max_fires,
            fired: schedule.fired,
            pause_after_failures: schedule.pause_after_failures,
            failures_in_row: schedule.failures_in_row,
            enabled: schedule.enabled,
            paused_reason: schedule.paused_reason.as_deref(),
            next_fires: next_fires(schedule),
            last_fire,
            last_job_id: schedule.last_job_id.map(Uuid::from),
            version: schedule.version,
            created_at: schedule.created_at,
            updated_at: schedule.updated_at,
        }
    }

    /// A schedule with everything.
    pub(super) fn detailed(schedule: &'a Schedule, last_fire: Option<&'a Fire>) -> Self {
        Self {
            input: asked(&schedule.target),
            job: JobTarget::new(&schedule.target, true),
            ..Self::listed(schedule, last_fire)
        }
    }
}

fn next_fires(schedule: &Schedule) -> Vec<DateTime<Utc>> {
    let timing = &schedule.timing;
    let is_within = |at: &DateTime<Utc>| timing.ends_at.is_none_or(|ends_at| *at <= ends_at);
    let first = schedule.next_fire_at.filter(|_| schedule.enabled);
    let following = |at: &DateTime<Utc>| timing.cron.next_after(*at).filter(is_within);
    let count = usize::try_from(schedule.fires_left())
        .unwrap_or(usize::MAX)
        .min(NEXT_FIRES);
    std::iter::successors(first, following).take(count).collect()
}
