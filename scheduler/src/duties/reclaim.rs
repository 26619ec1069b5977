//! Reclaim: takes over jobs whose worker is gone.
//!
//! Redis says which leases have passed; Postgres decides, by compare-and-set on the attempt, and respects a worker that
//! said there that it lives. For a running row of which Redis knows nothing a lease is begun in its worker's name: who
//! lives registers within its time, and when it passes the job is taken over as any other. Nothing is ever taken over on
//! the word of an index that does not know it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use common::ids::JobId;
use common::job::{Job, JobState};
use common::queue::{Acked, Begun, Dispatch, Expired, Generation, Keeps, Queue, Shard};
use common::service::{Duty, Report};
use common::store::{Class, Store};
use common::turn;
use uuid::Uuid;

use super::apart::apart;
use super::pause::Pause;
use super::steps::Steps;

/// Leases, or rows, of one tick.
const BATCH: u32 = 200;

/// Longest time between two looks while there are leases: an absence of Redis that is longer must not be overlooked.
const LOOK: Duration = Duration::from_millis(500);

/// Times are told in whole milliseconds, rounded down.
const MOMENT: Duration = Duration::from_millis(1);

/// The duty.
#[derive(Debug)]
pub struct Reclaim {
    store: Store,
    queue: Queue,
    state: Mutex<State>,
    /// How long until a lease may pass, as far as the last tick knew.
    pause: Pause,
}

#[derive(Debug, Default)]
struct State {
    /// Until then nothing is taken over: Redis was away, and workers could not beat, or its clock was set forward.
    quiet_until: Option<DateTime<Utc>>,
    /// When the rows were last looked at.
    swept_at: Option<DateTime<Utc>>,
    /// Of Redis's clock.
    steps: Steps,
    /// Where time was up: how many leases the next look goes past, because their jobs were not taken over.
    past: BTreeMap<Shard, u32>,
}

impl Reclaim {
    /// A duty that has not looked yet.
    pub fn new(store: Store, queue: Queue) -> Self {
        let pause = Pause::new(queue.lease_ttl());
        Self {
            store,
            queue,
            state: Mutex::default(),
            pause,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ttl(&self) -> TimeDelta {
        TimeDelta::from_std(self.queue.lease_ttl()).unwrap_or(TimeDelta::seconds(6))
    }

    /// Batch after batch of the leases that have passed, for as long as [`LOOK`]; the next call goes on there. Those that nobody
    /// may take over stay where they are, before all others: their worker is cut off from Redis, and says in Postgres that it
    /// lives.
    async fn reclaim_expired(&self, shard: Shard, begun: Begun, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let since = Instant::now();
        let mut past = self.state().past.remove(&shard).unwrap_or(0);
        let mut changed = 0;
        loop {
            let expired = self.queue.expired(shard, past, BATCH).await?;
            let is_last = expired.len() < usize::try_from(BATCH).unwrap_or(usize::MAX);
            let resolved = self.resolve_all(shard, expired, begun, now).await?;
            changed += u64::from(resolved);
            if is_last {
                return Ok(changed);
            }
            past += BATCH - resolved;
            if since.elapsed() >= LOOK {
                self.state().past.insert(shard, past);
                return Ok(changed);
            }
        }
    }

    /// Answers how many of them have changed.
    async fn resolve_all(
        &self,
        shard: Shard,
        expired: Vec<Expired>,
        begun: Begun,
        now: DateTime<Utc>,
    ) -> anyhow::Result<u32> {
        let ids: Vec<JobId> = expired.iter().map(|lease| lease.job_id).collect();
        let jobs = match self.store.jobs(&ids).await {
            Err(error) if error.class() == Class::Transient => return Err(error.into()),
            jobs => jobs.ok(),
        };
        let mut changed = 0;
        for lease in expired {
            let resolved = match &jobs {
                Some(jobs) => {
                    let job = jobs.iter().find(|job| job.id == lease.job_id);
                    self.resolve(shard, lease, job, begun, now).await
                }
                None => self.resolve_alone(shard, lease, begun, now).await,
            };
            changed += u32::from(apart(self.name(), lease.job_id, resolved)? == Some(true));
        }
        Ok(changed)
    }

    /// The same for one of several of which this version cannot read all.
    async fn resolve_alone(
        &self,
        shard: Shard,
        lease: Expired,
        begun: Begun,
        now: DateTime<Utc>,
    ) -> anyhow::Result<bool> {
        let jobs = self.store.jobs(&[lease.job_id]).await?;
        self.resolve(shard, lease, jobs.first(), begun, now).await
    }

    /// Makes Redis agree with the row of a lease that has passed in this generation. Answers whether anything changed.
    async fn resolve(
        &self,
        shard: Shard,
        lease: Expired,
        job: Option<&Job>,
        begun: Begun,
        now: DateTime<Utc>,
    ) -> anyhow::Result<bool> {
        let Some(job) = job else {
            self.queue.forget(shard, &[(lease.job_id, 0)]).await?;
            return Ok(true);
        };
        match job.state {
            JobState::Running { attempt, worker_id, .. }
                if (attempt, worker_id) == (lease.attempt, lease.worker_id) =>
            {
                self.take_over(shard, job, begun, now).await
            }
            // Somebody else runs it: the index is behind.
            JobState::Running { .. } => Ok(self.queue.adopt(shard, std::slice::from_ref(job)).await? > 0),
            // Claimed, but never confirmed in Postgres.
            JobState::Queued { .. } => {
                self.queue
                    .drop_passed(shard, lease.worker_id, &[(lease.job_id, lease.attempt)])
                    .await?;
                self.queue.dispatch(&[Dispatch::from_job(job)]).await?;
                Ok(true)
            }
            JobState::Scheduled { .. } | JobState::Retrying { .. } | JobState::Waiting { .. } => {
                let acked = Acked {
                    job_id: job.id,
                    attempt: lease.attempt,
                    seq: job.seq,
                    keeps: Keeps::of(job.state.name()),
                };
                self.queue.ack(shard, &[acked]).await?;
                Ok(true)
            }
            JobState::Succeeded { .. } | JobState::Failed { .. } | JobState::Cancelled { .. } => {
                self.forget(shard, job).await?;
                Ok(true)
            }
        }
    }

    async fn take_over(&self, shard: Shard, job: &Job, begun: Begun, now: DateTime<Utc>) -> anyhow::Result<bool> {
        // What the dead attempt said last is in Redis alone; it becomes part of the log with the change.
        let mut tail = Vec::new();
        loop {
            let after = tail.last().map_or(0, |event: &common::job::event::Event| event.seq);
            let more = self.queue.tail(job.tenant_id, job.id, after).await?;
            if more.is_empty() {
                break;
            }
            tail.extend(more);
        }
        // Wiped since the lease was read: what the tail lacks is lost, and only the next look can know that.
        match self.queue.generation(shard).await? {
            Generation::Open(still) if still.at == begun.at => {}
            _ => return Ok(false),
        }
        let is_older = job.started_at.is_some_and(|started| started < begun.at);
        // What it said before was in the Redis that was wiped, and its worker died before it could say it again, whether
        // it had registered or not. A worker that appends anything seeds all that Postgres does not have.
        let gap = is_older && tail.is_empty();
        let Some(taken) = self.store.reclaim(job.id, job.attempt, &tail, gap, now).await? else {
            return Ok(false);
        };
        tracing::warn!(job_id = %job.id, attempt = job.attempt, worker_id = ?job.worker_id, "worker lost: job taken over");
        metrics::counter!("hothouse_reclaims_total").increment(1);
        if taken.state.is_terminal() {
            self.forget(shard, &taken).await?;
        } else {
            self.queue.dispatch(&[Dispatch::from_job(&taken)]).await?;
        }
        Ok(true)
    }

    /// Forgets a job that has ended, and brings on the turn that waited for it.
    async fn forget(&self, shard: Shard, job: &Job) -> anyhow::Result<()> {
        self.queue.forget(shard, &[(job.id, job.seq)]).await?;
        if job.conversation_id.is_some() {
            turn::dispatch_next(&self.store, &self.queue, &[job.id]).await;
        }
        Ok(())
    }

    /// Begins leases for running rows that Redis does not know.
    async fn sweep(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        // What is left is what runs, so that this looks at no more; what time is left over the next look forgets.
        let since = Instant::now();
        while self.store.forget_handouts(BATCH).await? == u64::from(BATCH) && since.elapsed() < LOOK {}
        let (mut adopted, mut after) = (0, JobId(Uuid::nil()));
        loop {
            let jobs = self.store.running_after(after, now - self.ttl(), BATCH).await?;
            let ids: Vec<_> = jobs.iter().map(|job| (job.tenant_id, job.id)).collect();
            let unknown: Vec<&Job> = self
                .queue
                .unknown(&ids)
                .await?
                .into_iter()
                .map(|index| &jobs[index])
                .collect();
            adopted += adopt(&self.queue, &unknown).await?;
            match jobs.last() {
                Some(last) if jobs.len() == usize::try_from(BATCH).unwrap_or(usize::MAX) => after = last.id,
                _ => return Ok(adopted),
            }
        }
    }

    async fn reclaim(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let mut changed = 0;
        // Where there is no lease none passes before one that begins now.
        let mut pause = self.queue.lease_ttl();
        for shard in self.queue.shards() {
            if let Generation::Open(begun) = self.queue.generation(shard).await? {
                changed += self.reclaim_expired(shard, begun, now).await?;
            }
            if let Some(wait) = self.queue.first_expiry(shard).await? {
                // One that has passed is a living worker's, who will register it.
                let wait = if wait.is_zero() { LOOK } else { wait + MOMENT };
                pause = pause.min(LOOK).min(wait);
            }
        }
        if self.state().swept_at.is_none_or(|at| now - at >= self.ttl()) {
            if self.sweep(now).await? > 0 {
                pause = pause.min(LOOK);
            }
            self.state().swept_at = Some(now);
        }
        self.pause.set(pause);
        Ok(Report {
            changed,
            more: changed >= u64::from(BATCH),
        })
    }
}

impl Duty for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn interval(&self) -> Duration {
        self.pause.get()
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        self.pause.set(LOOK);
        let asked = Instant::now();
        let time = self.queue.time().await;
        let is_stepped = |time| self.state().steps.hear(time, (asked, Instant::now()));
        if time.as_ref().map_or(true, |time| is_stepped(*time)) {
            self.state().quiet_until = Some(now + self.ttl());
        }
        time?;
        // Redis, or its time, is just back: everybody who lives registers within a lease time.
        if self.state().quiet_until.is_some_and(|until| now < until) {
            return Ok(Report::default());
        }
        self.reclaim(now).await
    }
}

/// Begins leases in the names of these running jobs' workers where Redis does not know them.
pub(super) async fn adopt(queue: &Queue, running: &[&Job]) -> anyhow::Result<u64> {
    let mut by_shard: BTreeMap<Shard, Vec<Job>> = BTreeMap::new();
    for job in running {
        let shard = queue.shard_of(job.tenant_id);
        by_shard.entry(shard).or_default().push((*job).clone());
    }
    let mut adopted = 0;
    for (shard, jobs) in by_shard {
        adopted += queue.adopt(shard, &jobs).await?;
    }
    if adopted > 0 {
        tracing::info!(adopted, "leases begun for running jobs that Redis did not know");
    }
    Ok(adopted)
}
