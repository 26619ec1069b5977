//! One attempt, from its claim to its committed end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::clock::Clock;
use common::ids::WorkerId;
use common::job::approval::NewApproval;
use common::job::decision::{self, Counts, Decision, Outcome};
use common::job::event::{Event, EventBody};
use common::job::{Failure, FailureCode, Job, StateName};
use common::queue::{Dispatch, Queue};
use common::store::Store;
use common::store::claim::Claimed;
use common::store::events::Chunk;
use common::store::settle::{Settlement, TurnEnd};
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use crate::consumer::held::{Held, HeldAttempt, Holding, Stop, allowed};
use crate::events::{EventLog, LogTarget, Outlets, Unwritten};
use crate::executor::{Context, Ended, Machine};
use crate::settle::{Settled, Settler};

/// Runs attempts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Attempts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    worker_id: WorkerId,
    queue: Queue,
    outlets: Outlets,
    clock: Clock,
    held: Held,
    settler: Settler,
    machine: Machine,
    run_on: Duration,
    tracker: TaskTracker,
}

/// A slot with room for its result.
pub type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// What [`Attempts`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Who.
    pub worker_id: WorkerId,
    /// The truth.
    pub store: Store,
    /// The leases.
    pub queue: Queue,
    /// When things happen.
    pub clock: Clock,
    /// What is held.
    pub held: Held,
    /// Who writes ends.
    pub settler: Settler,
    /// What executors need.
    pub machine: Machine,
    /// How long a sandbox runs on after a renewal.
    pub run_on: Duration,
    /// Where attempts run.
    pub tracker: TaskTracker,
}

impl Attempts {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            worker_id,
            store,
            queue,
            clock,
            held,
            settler,
            machine,
            run_on,
            tracker,
        } = parts;
        let outlets = Outlets::spawn(worker_id, store, queue.clone(), &tracker);
        Self {
            inner: Arc::new(Inner {
                worker_id,
                queue,
                outlets,
                clock,
                held,
                settler,
                machine,
                run_on,
                tracker,
            }),
        }
    }

    /// How long a sandbox runs on after a renewal.
    pub fn run_on(&self) -> Duration {
        self.inner.run_on
    }

    /// The clock that claims are written with.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Where attempts run, and what leads to them.
    pub fn tracker(&self) -> &TaskTracker {
        &self.inner.tracker
    }

    /// What the worker holds.
    pub fn held(&self) -> &Held {
        &self.inner.held
    }

    /// Runs an attempt that was claimed at `asked` or later. The slot is free when its process has ended, the room for its
    /// result when its end is committed.
    pub fn spawn(&self, claimed: Claimed, held: HeldAttempt, asked: Instant, room: Room) {
        let holding = self.inner.held.add(held, asked + self.inner.run_on);
        self.begin(claimed, holding, room);
    }

    /// Gives an attempt back that must not run. It is not held: a heartbeat would take its places again.
    pub fn give_back(&self, claimed: Claimed, attempt: HeldAttempt, room: Room) {
        let apart = Held::default();
        let holding = apart.add(attempt, Instant::now());
        apart.stop(attempt.job_id, Stop::Drain);
        self.begin(claimed, holding, room);
    }

    /// Gives back an attempt of which nothing has begun.
    pub fn give_back_unheard(&self, job: Job) {
        let inner = Arc::clone(&self.inner);
        self.inner.tracker.spawn(async move {
            let unwritten = Unwritten {
                last_seq: job.seq,
                ..Unwritten::default()
            };
            inner.settle(&job, Ended::given_back(), unwritten).await;
        });
    }

    fn begin(&self, claimed: Claimed, holding: Holding, (slot, result): Room) {
        let inner = Arc::clone(&self.inner);
        self.inner.tracker.spawn(async move {
            Box::pin(inner.run(claimed, holding, slot)).await;
            drop(result);
        });
    }
}

impl Inner {
    async fn run(&self, claimed: Claimed, holding: Holding, slot: OwnedSemaphorePermit) {
        let Claimed { job, input } = claimed;
        let started = Event {
            seq: job.seq,
            at: job.started_at.unwrap_or_else(|| self.clock.now()),
            attempt: job.attempt,
            body: EventBody::Started { worker: self.worker_id },
        };
        let target = LogTarget {
            tenant_id: job.tenant_id,
            job_id: job.id,
            attempt: job.attempt,
            worker_id: self.worker_id,
            outlets: self.outlets.clone(),
            clock: self.clock.clone(),
        };
        let log = EventLog::begin(target, started, &self.tracker);
        let context = Context {
            job: job.clone(),
            input,
            worker_id: self.worker_id,
            events: log.sink().clone(),
            orders: holding.orders.clone(),
            clock: self.clock.clone(),
            machine: self.machine.clone(),
        };
        allowed(&mut holding.orders.clone()).await;
        let stop = holding.orders.borrow().stop;
        // To be given back before it has begun. A lost one writes nothing whatever it did, and how a job is cancelled is its
        // executor's to say.
        let ended = if stop == Some(Stop::Drain) {
            Ended::given_back()
        } else {
            execute(context).await
        };
        drop(slot);
        let lapsed = holding.orders.borrow().run_until <= Instant::now();
        let ended = if lapsed && self.held.is_unheard() && is_sandbox_lost(&ended) {
            tracing::warn!(job_id = %job.id, "its sandbox ended because nobody heard this worker: giving it back");
            Ended::given_back()
        } else {
            ended
        };
        let unwritten = log.end().await;
        if holding.orders.borrow().stop == Some(Stop::Lost) {
            return;
        }
        self.settle(&job, ended, unwritten).await;
        drop(holding);
    }

    async fn settle(&self, job: &Job, ended: Ended, unwritten: Unwritten) {
        let settlement = self.settlement(job, ended, unwritten);
        metrics::counter!("hothouse_attempts_total", "decision" => name(&settlement.decision)).increment(1);
        match self.settler.settle(job.tenant_id, settlement.clone()).await {
            Settled::Committed(StateName::Queued) => self.requeue(job).await,
            Settled::Committed(_) | Settled::GivenUp => {}
            Settled::LeaseLost => tracing::warn!(job_id = %job.id, attempt = job.attempt, "ended after its lease"),
            Settled::Refused => {
                let settled = self.settler.settle(job.tenant_id, bare(settlement)).await;
                tracing::error!(job_id = %job.id, ?settled, "stored without its result");
            }
        }
    }

    fn settlement(&self, job: &Job, ended: Ended, unwritten: Unwritten) -> Settlement {
        let now = self.clock.now();
        let counts = Counts {
            failures: job.failures,
            losses: job.losses,
            max_attempts: job.max_attempts,
            backoff: job.backoff,
            retry_on: &job.retry_on,
            cancel_requested: matches!(ended.outcome, Outcome::Cancelled),
        };
        let decision = decision::settle(ended.outcome, counts, rand::random(), now);
        let (chunk, seq) = last_events(job, self.worker_id, unwritten, &decision, &ended.approvals, now);
        let mut usage = job.usage.clone();
        usage.add(&ended.usage);
        // An attempt that is followed by another says everything again, but for one that waits: what it said stands, also
        // when the job is cancelled before there is another.
        let is_said_again = matches!(decision, Decision::RetryAt(..) | Decision::GiveBack);
        let messages = if is_said_again { Vec::new() } else { ended.messages };
        let turn = job.conversation_id.map(|id| TurnEnd {
            conversation_id: id,
            answers: ended.answers,
            messages,
        });
        Settlement {
            job_id: job.id,
            attempt: job.attempt,
            decision,
            result: ended.result,
            usage,
            seq,
            chunk,
            started_at: job.started_at.unwrap_or(now),
            finished_at: now,
            turn,
            parent_id: job.parent_id,
            children: ended.children,
            approvals: ended.approvals,
        }
    }

    /// A job that was given back may start elsewhere at once.
    async fn requeue(&self, job: &Job) {
        if let Err(error) = self.queue.dispatch(&[Dispatch::from_job(job)]).await {
            tracing::debug!(%error, job_id = %job.id, "redispatch finds it");
        }
    }
}

/// Runs the job. An executor that panics fails its job, and nothing else.
async fn execute(context: Context) -> Ended {
    let job_id = context.job.id;
    let ended = std::panic::AssertUnwindSafe(Box::pin(crate::executor::execute(context)))
        .catch_unwind()
        .await;
    ended.unwrap_or_else(|_panic| {
        tracing::error!(%job_id, "an executor panicked");
        Ended::failed(Failure::new(
            FailureCode::Internal,
            "an internal error ended the attempt",
        ))
    })
}

/// What is left of an end of which Postgres refuses something: the job must end, or it would run for ever, and so must its turn,
/// or its conversation would take no other. Its log stays; where it tells of a change that is not to be, the end comes after it.
fn bare(settlement: Settlement) -> Settlement {
    let after_log = settlement.chunk.as_ref().map_or(0, |chunk| chunk.last_seq() + 1);
    let failure = Failure::new(FailureCode::Internal, "the result could not be stored");
    let turn = settlement.turn.map(|turn| TurnEnd {
        messages: Vec::new(),
        ..turn
    });
    Settlement {
        decision: Decision::Fail(failure),
        result: None,
        seq: settlement.seq.max(after_log),
        turn,
        children: Vec::new(),
        approvals: Vec::new(),
        ..settlement
    }
}

/// The chunk to write with the end, and the number of the end itself. A job that ends without having said anything needs
/// no chunk: its events are made from its row. One that goes on must leave behind what the row will forget.
fn last_events(
    job: &Job,
    worker_id: WorkerId,
    unwritten: Unwritten,
    decision: &Decision,
    approvals: &[NewApproval],
    now: chrono::DateTime<chrono::Utc>,
) -> (Option<Chunk>, u64) {
    let mut seq = unwritten.last_seq + 1;
    let mut events = unwritten.events;
    let (body, is_tried_again) = match decision {
        Decision::Succeed | Decision::Fail(_) | Decision::Cancel => (None, false),
        Decision::RetryAt(retry_at, failure) => {
            let next_attempt = job.attempt + 1;
            (
                Some(EventBody::Retrying {
                    next_attempt,
                    retry_at: *retry_at,
                    error: failure.clone(),
                }),
                true,
            )
        }
        Decision::GiveBack => (Some(EventBody::Queued { position: None }), true),
        Decision::Wait(wait) => (
            Some(EventBody::Waiting {
                waits_for: wait.waits_for.as_str().to_owned(),
            }),
            false,
        ),
    };
    if let Some(body) = body {
        let event = |seq, at, body| Event {
            seq,
            at,
            attempt: job.attempt,
            body,
        };
        if !unwritten.spoke {
            let started = EventBody::Started { worker: worker_id };
            events.insert(0, event(job.seq, job.started_at.unwrap_or(now), started));
        } else if is_tried_again {
            // The next attempt says everything anew.
            events.push(event(
                seq,
                now,
                EventBody::AttemptReset {
                    discard_from_seq: job.seq,
                },
            ));
            seq += 1;
        }
        for asked in approvals {
            let asked = asked.clone();
            let body = EventBody::ApprovalRequested {
                approval_id: asked.id,
                tool_call_id: asked.tool_call_id,
                name: asked.tool,
                input: asked.input,
                deadline: asked.deadline,
            };
            events.push(event(seq, now, body));
            seq += 1;
        }
        events.push(event(seq, now, body));
    }
    (Chunk::pack(job.id, &events), seq)
}

fn is_sandbox_lost(ended: &Ended) -> bool {
    matches!(&ended.outcome, Outcome::Failed { failure, .. } if failure.code == FailureCode::SandboxFailed)
}

fn name(decision: &Decision) -> &'static str {
    match decision {
        Decision::Succeed => "succeeded",
        Decision::Fail(_) => "failed",
        Decision::Cancel => "cancelled",
        Decision::RetryAt(..) => "retrying",
        Decision::GiveBack => "given_back",
        Decision::Wait(_) => "waiting",
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{ConversationId, JobId};
    use common::job::Usage;
    use common::message::Message;

    use super::*;

    #[test]
    fn an_end_that_is_refused_still_frees_its_conversation() {
        let (conversation_id, now) = (ConversationId::new(), chrono::DateTime::UNIX_EPOCH);
        let refused = Settlement {
            job_id: JobId::new(),
            attempt: 1,
            decision: Decision::Succeed,
            result: Some(b"{}".to_vec()),
            usage: Usage::default(),
            seq: 7,
            chunk: None,
            started_at: now,
            finished_at: now,
            turn: Some(TurnEnd {
                conversation_id,
                answers: None,
                messages: vec![Message::user("odd", now)],
            }),
            parent_id: None,
            children: Vec::new(),
            approvals: Vec::new(),
        };
        let said = |seq| Event {
            seq,
            at: now,
            attempt: 1,
            body: EventBody::Cancelled {},
        };
        let logged = |seq| Chunk::pack(refused.job_id, &[said(seq)]);
        for (last, end) in [(6, 7), (7, 8)] {
            let chunk = logged(last);
            let left = bare(Settlement {
                chunk,
                ..refused.clone()
            });
            assert_eq!((left.chunk.unwrap().last_seq(), left.seq), (last, end));
        }
        let left = bare(refused);
        let turn = left.turn.unwrap();
        assert_eq!((turn.conversation_id, turn.messages.len()), (conversation_id, 0));
        assert!(matches!(left.decision, Decision::Fail(_)) && left.result.is_none() && left.seq == 7);
    }
}
