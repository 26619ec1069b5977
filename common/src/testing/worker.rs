//! A worker by hand: claims, beats, writes and settles like a real one, one step at a time.

use super::TestEnv;
use crate::ids::{JobId, WorkerId};
use crate::job::decision::Decision;
use crate::job::event::{Event, EventBody};
use crate::job::spec::SlotClass;
use crate::job::{Failure, FailureCode, NewJob, StateName, Usage, Wait};
use crate::queue::{Acked, Append, Appended, Beat, Dispatch, Error as QueueError, Keeps, Mode, Want};
use crate::store::claim::{Claim, Claimed};
use crate::store::events::Chunk;
use crate::store::settle::{Settlement, TurnEnd};
use crate::turn;

/// A worker that does only what it is told.
#[derive(Clone, Debug)]
pub struct TestWorker {
    /// Who.
    pub id: WorkerId,
    env: TestEnv,
}

impl TestEnv {
    /// A worker of no queue and no label in particular, unknown to Postgres.
    pub fn worker(&self) -> TestWorker {
        TestWorker {
            id: WorkerId::new(),
            env: self.clone(),
        }
    }
}

/// Room for so many light jobs of any queue.
pub fn light(free: u32) -> Want {
    Want {
        free,
        slot: SlotClass::Light,
        labels: Vec::new(),
        queues: Vec::new(),
        mode: Mode::Busy,
    }
}

impl TestWorker {
    /// What Redis hands out in every shard; Postgres has not been asked.
    ///
    /// # Errors
    /// [`QueueError::Closed`] while a shard is closed.
    pub async fn take(&self, want: &Want) -> Result<Vec<Claim>, QueueError> {
        let mut claims = Vec::new();
        for shard in self.env.queue.shards() {
            let left = want.free - u32::try_from(claims.len()).unwrap();
            let want = Want {
                free: left,
                ..want.clone()
            };
            claims.extend(self.env.queue.claim(shard, self.id, &want).await?.claims);
        }
        Ok(claims)
    }

    /// Asks Postgres for what Redis handed out, and drops what it refuses.
    pub async fn confirm(&self, claims: &[Claim]) -> Vec<Claimed> {
        let claimed = self
            .env
            .store
            .claim(self.id, claims, self.env.clock.now())
            .await
            .unwrap();
        let refused = claims
            .iter()
            .filter(|claim| !claimed.iter().any(|c| c.job.id == claim.job_id));
        let refused: Vec<_> = refused.map(|claim| (claim.job_id, claim.attempt)).collect();
        for shard in self.env.queue.shards() {
            self.env.queue.drop_claims(shard, self.id, &refused).await.unwrap();
        }
        let refused: Vec<JobId> = refused.into_iter().map(|(id, _)| id).collect();
        turn::dispatch_next(&self.env.store, &self.env.queue, &refused).await;
        claimed
    }

    /// Claims as a worker with this room does.
    pub async fn claim_as(&self, want: &Want) -> Vec<Claimed> {
        let claims = self.take(want).await.unwrap();
        let mut claimed = self.confirm(&claims).await;
        claimed.sort_by_key(|claimed| claims.iter().position(|claim| claim.job_id == claimed.job.id));
        claimed
    }

    /// Claims up to so many light jobs, in the order of the handout.
    pub async fn claim(&self, free: u32) -> Vec<Claimed> {
        self.claim_as(&light(free)).await
    }

    /// Claims one light job.
    ///
    /// # Panics
    /// When there is none.
    pub async fn one(&self) -> Claimed {
        self.claim(1).await.pop().expect("a job to claim")
    }

    /// Ends an attempt that said nothing. Answers whether it still was this worker's.
    pub async fn settle(&self, claimed: &Claimed, decision: Decision) -> bool {
        self.settle_after(claimed, decision, &[]).await
    }

    /// Ends an attempt with success.
    pub async fn succeed(&self, claimed: &Claimed) -> bool {
        self.settle(claimed, Decision::Succeed).await
    }

    /// Ends an attempt with events that Postgres does not have yet.
    pub async fn settle_after(&self, claimed: &Claimed, decision: Decision, unwritten: &[Event]) -> bool {
        let settlement = self.settlement(claimed, decision, unwritten);
        let changed = self.commit(&settlement).await;
        if changed {
            self.ack(claimed, &settlement).await;
        }
        changed
    }

    /// The settlement of an attempt whose unwritten events are given.
    pub fn settlement(&self, claimed: &Claimed, decision: Decision, unwritten: &[Event]) -> Settlement {
        let (job, now) = (&claimed.job, self.env.clock.now());
        let seq = unwritten.last().map_or(job.seq, |event| event.seq) + 1;
        let body = match &decision {
            Decision::Succeed | Decision::Fail(_) | Decision::Cancel => None,
            Decision::RetryAt(at, error) => Some(EventBody::Retrying {
                next_attempt: job.attempt + 1,
                retry_at: *at,
                error: error.clone(),
            }),
            Decision::GiveBack => Some(EventBody::Queued { position: None }),
            Decision::Wait(wait) => Some(EventBody::Waiting {
                waits_for: wait.waits_for.as_str().to_owned(),
            }),
        };
        let mut events = unwritten.to_vec();
        if let Some(body) = body {
            if events.is_empty() {
                events.push(self.started(claimed));
            }
            events.push(Event {
                seq,
                at: now,
                attempt: job.attempt,
                body,
            });
        }
        Settlement {
            job_id: job.id,
            attempt: job.attempt,
            decision,
            result: None,
            usage: Usage::default(),
            seq,
            chunk: Chunk::pack(job.id, &events),
            started_at: job.started_at.unwrap_or(now),
            finished_at: now,
            turn: job.conversation_id.map(|id| TurnEnd {
                conversation_id: id,
                answers: None,
                messages: Vec::new(),
            }),
            parent_id: job.parent_id,
            children: Vec::new(),
            approvals: Vec::new(),
        }
    }

    /// Ends an attempt that waits for these jobs, and dispatches them. Answers whether it still was this worker's.
    pub async fn wait_for(&self, claimed: &Claimed, wait: Wait, children: Vec<NewJob>) -> bool {
        let mut settlement = self.settlement(claimed, Decision::Wait(wait), &[]);
        settlement.children.clone_from(&children);
        let changed = self.commit(&settlement).await;
        if changed {
            self.ack(claimed, &settlement).await;
            let children: Vec<Dispatch> = children.iter().map(Dispatch::from_new).collect();
            self.env.queue.dispatch(&children).await.unwrap();
        }
        changed
    }

    /// Writes a settlement. Answers whether the attempt still was this worker's.
    pub async fn commit(&self, settlement: &Settlement) -> bool {
        let settlements = std::slice::from_ref(settlement);
        let committed = self.env.store.settle(self.id, settlements).await.unwrap();
        let woken: Vec<Dispatch> = committed.woken.iter().map(Dispatch::from_job).collect();
        self.env.queue.dispatch(&woken).await.unwrap();
        let ended = committed.state(settlement.job_id).is_some_and(StateName::is_terminal);
        if ended && settlement.turn.is_some() {
            turn::dispatch_next(&self.env.store, &self.env.queue, &[settlement.job_id]).await;
        }
        !committed.changed.is_empty()
    }

    /// Ends the lease of a settled attempt.
    pub async fn ack(&self, claimed: &Claimed, settlement: &Settlement) {
        let keeps = match settlement.decision {
            Decision::Wait(_) => Keeps::Conversation,
            Decision::RetryAt(..) | Decision::GiveBack => Keeps::Places,
            Decision::Succeed | Decision::Fail(_) | Decision::Cancel => Keeps::Nothing,
        };
        let acked = Acked {
            job_id: settlement.job_id,
            attempt: settlement.attempt,
            seq: settlement.seq,
            keeps,
        };
        self.env
            .queue
            .ack(self.env.queue.shard_of(claimed.job.tenant_id), &[acked])
            .await
            .unwrap();
    }

    /// A heartbeat for one attempt.
    pub async fn beat(&self, claimed: &Claimed) -> Beat {
        let shard = self.env.queue.shard_of(claimed.job.tenant_id);
        self.env
            .queue
            .heartbeat(shard, self.id, &[(claimed.job.id, claimed.job.attempt)])
            .await
            .unwrap()[0]
    }

    /// Registers an attempt again if Postgres confirms it. Answers whether it is this worker's.
    pub async fn register(&self, claimed: &Claimed) -> bool {
        let fence = (claimed.job.id, claimed.job.attempt);
        let confirmed = self.env.store.held(self.id, &[fence]).await.unwrap();
        let jobs = self.env.store.jobs(&confirmed).await.unwrap();
        let Some(job) = jobs.first() else { return false };
        let shard = self.env.queue.shard_of(job.tenant_id);
        self.env
            .queue
            .register(shard, self.id, &[Dispatch::from_running(job)])
            .await
            .unwrap()[0]
    }

    /// The `started` event of an attempt.
    pub fn started(&self, claimed: &Claimed) -> Event {
        let job = &claimed.job;
        let at = job.started_at.unwrap_or_else(|| self.env.clock.now());
        Event {
            seq: job.seq,
            at,
            attempt: job.attempt,
            body: EventBody::Started { worker: self.id },
        }
    }

    /// An attempt's `started` event and `lines` of output after it, numbered.
    pub fn said(&self, claimed: &Claimed, lines: u64) -> Vec<Event> {
        let started = self.started(claimed);
        let at = self.env.clock.now();
        let line = |n: u64| Event {
            seq: started.seq + n,
            at,
            attempt: started.attempt,
            body: EventBody::Stdout {
                text: format!("line {n} of attempt {}\n", started.attempt),
            },
        };
        std::iter::once(started.clone()).chain((1..=lines).map(line)).collect()
    }

    /// Appends events to the live log; `written` is the last number that Postgres has.
    pub async fn append(&self, claimed: &Claimed, written: u64, events: &[Event]) -> Appended {
        let job = &claimed.job;
        let Some(first) = events.first() else {
            return Appended::Ok;
        };
        let log = Append {
            tenant_id: job.tenant_id,
            job_id: job.id,
            attempt: job.attempt,
            worker_id: self.id,
            written,
            first_seq: first.seq,
            events: Append::pack(events).unwrap(),
        };
        let shard = self.env.queue.shard_of(job.tenant_id);
        self.env.queue.append(shard, &[log]).await.unwrap()[0]
    }
}

/// A failure of the job's own.
pub fn failure() -> Failure {
    Failure::new(FailureCode::NonzeroExit, "exit code 1")
}

/// The job's id, for comparing.
pub fn ids(claimed: &[Claimed]) -> Vec<JobId> {
    claimed.iter().map(|claimed| claimed.job.id).collect()
}
