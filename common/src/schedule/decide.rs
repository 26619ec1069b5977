//! What a schedule that is due does: the plan of its due times, its overlap policy and its target, made into jobs and
//! records.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::value::{RawValue, to_raw_value};

use super::plan::{Missed, plan};
use super::{Outcome, Overlap, Schedule};
use crate::agent::AgentDefinition;
use crate::ids::{AgentId, JobId, ScheduleId, TenantId};
use crate::job::spec::{SlotClass, class_of};
use crate::job::{Concurrency, Kind, Links, NewJob, Strategy};

/// How far the last job of a schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// It has ended, or there is none.
    Ended,
    /// It has not ended.
    Open,
    /// It has not ended, but somebody asked to cancel it.
    Cancelled,
}

/// An agent as it is now.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Its version.
    pub version: u32,
    /// What it is.
    pub definition: AgentDefinition,
}

/// What a decision depends on beside the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Postgres's time.
    pub now: DateTime<Utc>,
    /// Due times that are not older than this are always fired.
    pub grace: Duration,
    /// The schedule's last job.
    pub last: Last,
    /// The schedule's agent, if it names one that can be used.
    pub agent: Option<&'a Agent>,
}

/// A due time and what becomes of it.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The due time.
    pub fire_at: DateTime<Utc>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The job, when it is fired.
    pub job: Option<NewJob>,
    /// Why it is not.
    pub reason: Option<String>,
    /// Whether a person asked for it.
    pub manual: bool,
}

/// What becomes of a schedule.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Which one.
    pub schedule_id: ScheduleId,
    /// The due times that are decided.
    pub fires: Vec<Decided>,
    /// The next due time.
    pub next: Option<DateTime<Utc>>,
    /// When that is acted on.
    pub due_at: Option<DateTime<Utc>>,
    /// A job that must be cancelled first; then nothing else is decided yet.
    pub cancel_first: Option<(TenantId, JobId)>,
    /// Why the schedule cannot go on.
    pub unfit: Option<String>,
}

impl Decision {
    fn nothing(schedule: &Schedule, next: Option<DateTime<Utc>>) -> Self {
        let due_at = next.map(|next| next + schedule.delay());
        Self {
            schedule_id: schedule.id,
            fires: Vec::new(),
            next,
            due_at,
            cancel_first: None,
            unfit: None,
        }
    }

    /// A fire that a person asked for: the due times stay as they are.
    pub fn manual(schedule: &Schedule, job: NewJob, now: DateTime<Utc>) -> Self {
        let mut decision = Self::nothing(schedule, schedule.next_fire_at);
        decision.fires.push(Decided {
            manual: true,
            ..Decided::fired(now, job)
        });
        decision
    }

    /// The last due time whose job is one of those that were `made`, and that job.
    pub fn last_job(&self, made: &HashSet<JobId>) -> Option<(DateTime<Utc>, JobId)> {
        let job = |fire: &Decided| fire.job.as_ref().map(|job| (fire.fire_at, job.id));
        self.fires
            .iter()
            .rev()
            .filter_map(job)
            .find(|(_, id)| made.contains(id))
    }
}

impl Decided {
    fn fired(fire_at: DateTime<Utc>, job: NewJob) -> Self {
        Self {
            fire_at,
            outcome: Outcome::Fired,
            job: Some(job),
            reason: None,
            manual: false,
        }
    }

    fn skipped(fire_at: DateTime<Utc>, reason: &str) -> Self {
        Self {
            fire_at,
            outcome: Outcome::Skipped,
            job: None,
            reason: Some(reason.to_owned()),
            manual: false,
        }
    }

    fn missed(missed: &Missed) -> Self {
        let Missed {
            first,
            last,
            count,
            more,
        } = missed;
        let count = if *more {
            format!("more than {count}")
        } else {
            count.to_string()
        };
        let reason = format!(
            "too late: {count} due from {} to {}",
            first.to_rfc3339(),
            last.to_rfc3339()
        );
        Self {
            fire_at: *last,
            outcome: Outcome::Missed,
            job: None,
            reason: Some(reason),
            manual: false,
        }
    }
}

/// Decides what becomes of a schedule's due times.
pub fn decide(schedule: &Schedule, context: &Context<'_>) -> Decision {
    let Some(next) = schedule.next_fire_at else {
        return Decision::nothing(schedule, None);
    };
    let plan = plan(&schedule.timing, schedule.delay(), next, context.now, context.grace);
    if let (Overlap::CancelRunning, Last::Open, Some(last), [_, ..]) = (
        schedule.overlap,
        context.last,
        schedule.last_job_id,
        plan.fires.as_slice(),
    ) {
        let mut decision = Decision::nothing(schedule, schedule.next_fire_at);
        decision.cancel_first = Some((schedule.tenant_id, last));
        return decision;
    }
    let mut decision = Decision::nothing(schedule, plan.next);
    decision.fires.extend(plan.missed.as_ref().map(Decided::missed));
    let mut is_open = context.last != Last::Ended;
    let latest = plan.fires.last().copied();
    for fire_at in plan.fires {
        let fire = match schedule.overlap {
            Overlap::Skip if is_open => Decided::skipped(fire_at, "the last job has not ended"),
            Overlap::CancelRunning if Some(fire_at) != latest => Decided::skipped(fire_at, "a later due time has come"),
            _ => match new_job(schedule, context.agent, context.now) {
                Ok(job) => Decided::fired(fire_at, job),
                Err(reason) => {
                    decision.unfit = Some(reason.clone());
                    Decided::skipped(fire_at, &reason)
                }
            },
        };
        is_open |= fire.job.is_some();
        decision.fires.push(fire);
    }
    decision
}

/// The job that a schedule submits now.
///
/// # Errors
/// Why it cannot.
pub fn new_job(schedule: &Schedule, agent: Option<&Agent>, now: DateTime<Utc>) -> Result<NewJob, String> {
    let mut spec = schedule.target.spec.clone();
    let (slot, input, link) = match schedule.target.agent_id {
        None => (slot(spec.kind), schedule.target.input.get().to_owned(), None),
        Some(id) => {
            let agent = agent.filter(|agent| agent.tenant_id == schedule.tenant_id);
            let agent = agent.ok_or_else(|| format!("agent {id} is deleted or archived"))?;
            let input = agent_input(&schedule.target.input, agent)?;
            (agent.definition.slot_class(), input, Some((agent.id, agent.version)))
        }
    };
    if schedule.overlap == Overlap::Queue && spec.concurrency.is_none() {
        spec.concurrency = Some(Concurrency {
            key: schedule.concurrency_key(),
            limit: 1,
            strategy: Strategy::Queue,
        });
    }
    Ok(NewJob {
        id: JobId::new(),
        tenant_id: schedule.tenant_id,
        class: class_of(slot, &spec.labels),
        spec,
        input: input.into_bytes(),
        created_at: now,
        api_key_id: None,
        links: Links {
            agent: link,
            schedule_id: Some(schedule.id),
            ..Links::default()
        },
    })
}

fn slot(kind: Kind) -> SlotClass {
    match kind {
        Kind::Exec => SlotClass::Sandbox,
        Kind::Noop | Kind::AgentRun | Kind::ChatTurn | Kind::Group => SlotClass::Light,
    }
}

/// The input of a run: what it is asked, and the definition, so that its worker reads no other row.
fn agent_input(asked: &RawValue, agent: &Agent) -> Result<String, String> {
    let unfit = |error: serde_json::Error| format!("its input cannot be written: {error}");
    let mut whole: BTreeMap<String, Box<RawValue>> = serde_json::from_str(asked.get()).map_err(unfit)?;
    whole.insert("agent".to_owned(), to_raw_value(&agent.definition).map_err(unfit)?);
    whole.insert("agent_version".to_owned(), to_raw_value(&agent.version).map_err(unfit)?);
    serde_json::to_string(&whole).map_err(unfit)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;

    use super::*;
    use crate::cron::Cron;
    use crate::job::spec::JobSpec;
    use crate::schedule::{Form, Target, Timing};

    fn now() -> DateTime<Utc> {
        "2026-11-21T12:00:02.5Z".parse().unwrap()
    }

    /// Secondly, and three seconds behind.
    fn schedule(overlap: Overlap) -> Schedule {
        let cron = Cron::parse("* * * * * *", "UTC").unwrap();
        let timing = Timing {
            cron,
            catch_up: Duration::ZERO,
            jitter: Duration::ZERO,
            starts_at: None,
            ends_at: None,
        };
        Schedule {
            id: ScheduleId::new(),
            tenant_id: TenantId::new(),
            name: "s".to_owned(),
            timing,
            target: Target {
                form: Form::Job,
                agent_id: None,
                spec: JobSpec::new(Kind::Noop),
                input: to_raw_value(&json!({})).unwrap(),
            },
            overlap,
            enabled: true,
            paused_reason: None,
            next_fire_at: Some(now() - TimeDelta::milliseconds(2_500)),
            last_fire_at: None,
            last_job_id: Some(JobId::new()),
            version: 1,
            created_at: now(),
            updated_at: now(),
        }
    }

    fn decided(schedule: &Schedule, last: Last) -> (Decision, Vec<Outcome>) {
        let context = Context {
            now: now(),
            grace: Duration::from_secs(15),
            last,
            agent: None,
        };
        let decision = decide(schedule, &context);
        let outcomes = decision.fires.iter().map(|fire| fire.outcome).collect();
        (decision, outcomes)
    }

    #[test]
    fn skip_fires_once_while_nothing_is_open() {
        use Outcome::{Fired, Skipped};
        assert_eq!(
            decided(&schedule(Overlap::Skip), Last::Ended).1,
            [Fired, Skipped, Skipped]
        );
        assert_eq!(
            decided(&schedule(Overlap::Skip), Last::Open).1,
            [Skipped, Skipped, Skipped]
        );
    }

    #[test]
    fn allow_fires_each_and_queue_holds_them_apart() {
        let (allow, outcomes) = decided(&schedule(Overlap::Allow), Last::Open);
        assert_eq!(outcomes, [Outcome::Fired; 3]);
        assert!(
            allow
                .fires
                .iter()
                .all(|fire| fire.job.as_ref().unwrap().spec.concurrency.is_none())
        );
        let (queue, outcomes) = decided(&schedule(Overlap::Queue), Last::Open);
        assert_eq!(outcomes, [Outcome::Fired; 3]);
        let keys: HashSet<_> = queue
            .fires
            .iter()
            .map(|fire| fire.job.as_ref().unwrap().spec.concurrency.clone().unwrap().key)
            .collect();
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn cancel_running_cancels_first_and_fires_the_latest_then() {
        let schedule = schedule(Overlap::CancelRunning);
        let (first, outcomes) = decided(&schedule, Last::Open);
        assert_eq!((outcomes.len(), first.next), (0, schedule.next_fire_at));
        assert_eq!(
            first.cancel_first,
            Some((schedule.tenant_id, schedule.last_job_id.unwrap()))
        );
        let (then, outcomes) = decided(&schedule, Last::Cancelled);
        assert_eq!(outcomes, [Outcome::Skipped, Outcome::Skipped, Outcome::Fired]);
        assert_eq!(then.fires[2].fire_at, now() - TimeDelta::milliseconds(500));
    }

    #[test]
    fn an_agent_is_run_in_its_present_version() {
        let mut schedule = schedule(Overlap::Allow);
        let definition = AgentDefinition {
            models: vec!["scripted/echo".to_owned()],
            ..AgentDefinition::default()
        };
        let agent = Agent {
            id: AgentId::new(),
            tenant_id: schedule.tenant_id,
            version: 7,
            definition,
        };
        schedule.target.agent_id = Some(agent.id);
        schedule.target.input = to_raw_value(&json!({ "input": "hello" })).unwrap();
        let job = new_job(&schedule, Some(&agent), now()).unwrap();
        assert_eq!(
            (job.links.agent, job.links.schedule_id),
            (Some((agent.id, 7)), Some(schedule.id))
        );
        let input: serde_json::Value = serde_json::from_slice(&job.input).unwrap();
        assert_eq!((&input["input"], &input["agent_version"]), (&json!("hello"), &json!(7)));
        assert_eq!(input["agent"]["models"], json!(["scripted/echo"]));
        let foreign = Agent {
            tenant_id: TenantId::new(),
            ..agent
        };
        assert!(new_job(&schedule, Some(&foreign), now()).is_err());
    }

    #[test]
    fn a_schedule_whose_agent_is_gone_cannot_go_on() {
        let mut schedule = schedule(Overlap::Allow);
        schedule.target.agent_id = Some(AgentId::new());
        let (decision, outcomes) = decided(&schedule, Last::Ended);
        assert_eq!(outcomes, [Outcome::Skipped; 3]);
        assert!(decision.unfit.unwrap().contains("deleted"));
    }
}
