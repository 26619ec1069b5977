//! What a schedule that is due does: the plan of its due times and its overlap policy, made into jobs and records.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::job::{Fired, Means, new_job};
use super::plan::{Missed, plan};
use super::{Outcome, Overlap, Schedule};
use crate::ids::{JobId, ScheduleId, TenantId};

/// How far the last jobs of a schedule are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The last one has ended, or there is none.
    Ended,
    /// It has not ended.
    Open,
    /// It has not ended, and neither has the one before it.
    Waiting,
    /// It has not ended, but somebody asked to cancel it.
    Cancelled,
}

impl Last {
    /// How far they are after another fire.
    fn after_fire(self) -> Self {
        match self {
            Self::Ended => Self::Open,
            Self::Open | Self::Waiting | Self::Cancelled => Self::Waiting,
        }
    }
}

/// What a decision depends on beside the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Postgres's time.
    pub now: DateTime<Utc>,
    /// Due times that are not older than this are always fired.
    pub grace: Duration,
    /// The schedule's last jobs.
    pub last: Last,
    /// One of them that has not ended and that nobody asked to cancel.
    pub open: Option<JobId>,
    /// What its job is made of.
    pub means: Means<'a>,
}

/// A due time and what becomes of it.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The due time.
    pub fire_at: DateTime<Utc>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The job, when it is fired.
    pub job: Option<Fired>,
    /// Why it is not.
    pub reason: Option<String>,
    /// Whether a person asked for it.
    pub manual: bool,
    /// Whether somebody asked for this due time afterwards.
    pub backfill: bool,
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
    pub fn manual(schedule: &Schedule, job: Fired, now: DateTime<Utc>) -> Self {
        let mut decision = Self::nothing(schedule, schedule.next_fire_at);
        decision.fires.push(Decided {
            manual: true,
            ..Decided::fired(now, job)
        });
        decision
    }

    /// Due times of the past that somebody asked for: those to come stay as they are.
    pub fn backfill(schedule: &Schedule, jobs: Vec<(DateTime<Utc>, Fired)>) -> Self {
        let mut decision = Self::nothing(schedule, schedule.next_fire_at);
        decision.fires = jobs
            .into_iter()
            .map(|(fire_at, job)| Decided {
                backfill: true,
                ..Decided::fired(fire_at, job)
            })
            .collect();
        decision
    }

    /// The due times whose jobs are among those that were `made`, with the jobs, in order.
    pub fn made<'a>(&'a self, made: &'a HashSet<JobId>) -> impl DoubleEndedIterator<Item = (&'a Decided, JobId)> + 'a {
        let job = |fire: &'a Decided| fire.job.as_ref().map(|fired| (fire, fired.job.id));
        self.fires.iter().filter_map(job).filter(|(_, id)| made.contains(id))
    }
}

impl Decided {
    fn fired(fire_at: DateTime<Utc>, job: Fired) -> Self {
        Self {
            fire_at,
            outcome: Outcome::Fired,
            job: Some(job),
            reason: None,
            manual: false,
            backfill: false,
        }
    }

    fn skipped(fire_at: DateTime<Utc>, reason: &str) -> Self {
        Self {
            fire_at,
            outcome: Outcome::Skipped,
            job: None,
            reason: Some(reason.to_owned()),
            manual: false,
            backfill: false,
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
            backfill: false,
        }
    }
}

/// Decides what becomes of a schedule's due times.
pub fn decide(schedule: &Schedule, context: &Context<'_>) -> Decision {
    let mut left = schedule.fires_left();
    let Some(next) = schedule.next_fire_at.filter(|_| left > 0) else {
        return Decision::nothing(schedule, None);
    };
    let plan = plan(&schedule.timing, schedule.delay(), next, context.now, context.grace);
    if let (Overlap::CancelRunning, Some(open), [_, ..]) = (schedule.overlap, context.open, plan.fires.as_slice()) {
        let mut decision = Decision::nothing(schedule, schedule.next_fire_at);
        decision.cancel_first = Some((schedule.tenant_id, open));
        return decision;
    }
    let mut decision = Decision::nothing(schedule, plan.next);
    decision.fires.extend(plan.missed.as_ref().map(Decided::missed));
    let (mut last, mut last_fire_at) = (context.last, schedule.last_fire_at);
    let latest = plan.fires.last().copied();
    for fire_at in plan.fires {
        let fire = match skipped(schedule.overlap, last, Some(fire_at) == latest) {
            Some(reason) => Decided::skipped(fire_at, reason),
            None => match new_job(schedule, &context.means, fire_at, last_fire_at, context.now) {
                Ok(job) => Decided::fired(fire_at, job),
                Err(reason) => {
                    decision.unfit = Some(reason.clone());
                    Decided::skipped(fire_at, &reason)
                }
            },
        };
        if fire.job.is_some() {
            last = last.after_fire();
            last_fire_at = Some(fire_at);
            left -= 1;
        }
        decision.fires.push(fire);
        if left == 0 {
            (decision.next, decision.due_at) = (None, None);
            break;
        }
    }
    decision
}

/// Why a due time makes no job.
fn skipped(overlap: Overlap, last: Last, is_latest: bool) -> Option<&'static str> {
    match (overlap, last) {
        (Overlap::Skip, Last::Open | Last::Waiting | Last::Cancelled) => Some("the last job has not ended"),
        (Overlap::Queue, Last::Waiting) => Some("one job waits already for the end of another"),
        (Overlap::CancelRunning, _) if !is_latest => Some("a later due time has come"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::json;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::agent::AgentDefinition;
    use crate::cron::Cron;
    use crate::ids::{AgentId, ConversationId};
    use crate::job::Kind;
    use crate::job::spec::JobSpec;
    use crate::schedule::job::{Agent, Talk};
    use crate::schedule::{Form, Target, Timing};

    fn now() -> DateTime<Utc> {
        "2026-11-21T12:00:02.5Z".parse().unwrap()
    }

    /// Secondly, and three seconds behind.
    fn schedule(overlap: Overlap) -> Schedule {
        let cron = Cron::parse("* * * * * *", "UTC").unwrap();
        let timing = Timing::new(cron);
        Schedule {
            id: ScheduleId::new(),
            tenant_id: TenantId::new(),
            name: "s".to_owned(),
            timing,
            target: Target {
                form: Form::Job,
                agent_id: None,
                conversation_id: None,
                spec: JobSpec::new(Kind::Noop),
                input: to_raw_value(&json!({})).unwrap(),
            },
            overlap,
            enabled: true,
            paused_reason: None,
            next_fire_at: Some(now() - TimeDelta::milliseconds(2_500)),
            last_fire_at: None,
            last_job_id: Some(JobId::new()),
            prior_job_id: None,
            fired: 0,
            pause_after_failures: None,
            failures_in_row: 0,
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
            open: schedule
                .last_job_id
                .filter(|_| matches!(last, Last::Open | Last::Waiting)),
            means: Means::default(),
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
                .all(|fire| fire.job.as_ref().unwrap().job.spec.concurrency.is_none())
        );
        let (queue, outcomes) = decided(&schedule(Overlap::QueueAll), Last::Waiting);
        assert_eq!(outcomes, [Outcome::Fired; 3]);
        let keys: HashSet<_> = queue
            .fires
            .iter()
            .map(|fire| fire.job.as_ref().unwrap().job.spec.concurrency.clone().unwrap().key)
            .collect();
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn queue_lets_one_run_and_one_wait() {
        use Outcome::{Fired, Skipped};
        let outcomes = |last| decided(&schedule(Overlap::Queue), last).1;
        assert_eq!(outcomes(Last::Ended), [Fired, Fired, Skipped]);
        assert_eq!(outcomes(Last::Open), [Fired, Skipped, Skipped]);
        assert_eq!(outcomes(Last::Waiting), [Skipped; 3]);
    }

    #[test]
    fn a_schedule_is_over_after_so_many_jobs() {
        let mut schedule = schedule(Overlap::Allow);
        (schedule.timing.max_fires, schedule.fired) = (Some(5), 3);
        let (decision, outcomes) = decided(&schedule, Last::Ended);
        assert_eq!((outcomes.len(), decision.next, decision.due_at), (2, None, None));
        schedule.fired = 5;
        assert_eq!(
            (decided(&schedule, Last::Ended).1.len(), schedule.first(now())),
            (0, None)
        );
        schedule.fired = 4;
        assert!(schedule.first(now()).is_some());
    }

    #[test]
    fn templates_are_replaced_at_each_fire() {
        let mut schedule = schedule(Overlap::Allow);
        schedule.target.input =
            to_raw_value(&json!({"at": "{{ fire_at }} {{ last_fire_at }}", "r": "{{ last_result.n }}"})).unwrap();
        let context = Context {
            now: now(),
            grace: Duration::from_secs(15),
            last: Last::Ended,
            open: None,
            means: Means {
                last_result: Some(br#"{"n":7}"#),
                ..Means::default()
            },
        };
        let decision = decide(&schedule, &context);
        let inputs: Vec<serde_json::Value> = decision
            .fires
            .iter()
            .map(|fire| serde_json::from_slice(&fire.job.as_ref().unwrap().job.input).unwrap())
            .collect();
        assert_eq!(inputs[0], json!({"at": "2026-11-21T12:00:00Z ", "r": "7"}));
        assert_eq!(inputs[1]["at"], "2026-11-21T12:00:01Z 2026-11-21T12:00:00Z");
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
        let submitted = |agent: &Agent| {
            let means = Means {
                agent: Some(agent),
                ..Means::default()
            };
            new_job(&schedule, &means, now(), None, now())
        };
        let job = submitted(&agent).unwrap().job;
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
        assert!(submitted(&foreign).is_err());
    }

    #[test]
    fn a_turn_is_a_message_and_the_job_that_answers_it() {
        let mut schedule = schedule(Overlap::Allow);
        let talk = Talk {
            id: ConversationId::new(),
            tenant_id: schedule.tenant_id,
            agent: Some(AgentDefinition::default()),
            user_id: Some("u".to_owned()),
        };
        schedule.target.conversation_id = Some(talk.id);
        schedule.target.spec = JobSpec::new(Kind::ChatTurn);
        schedule.target.input =
            to_raw_value(&json!({"parts": [{"type": "text", "text": "It is {{ fire_at }}"}]})).unwrap();
        let means = Means {
            talk: Some(&talk),
            ..Means::default()
        };
        let fired = new_job(&schedule, &means, now(), None, now()).unwrap();
        let (message, input) = (
            fired.message.unwrap(),
            serde_json::from_slice::<serde_json::Value>(&fired.job.input).unwrap(),
        );
        assert_eq!(input["message_id"], json!(message.id));
        assert_eq!(json!(message.parts)[0]["text"], "It is 2026-11-21T12:00:02.500Z");
        assert_eq!(
            (fired.job.links.conversation_id, fired.job.spec.user_id.as_deref()),
            (Some(talk.id), Some("u"))
        );
        let gone = new_job(&schedule, &Means::default(), now(), None, now());
        assert!(gone.unwrap_err().contains("conversation is deleted"));
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
