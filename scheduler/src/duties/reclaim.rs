//! Reclaim: takes over jobs whose worker is gone.
//!
//! Redis says which leases have passed; Postgres decides, by compare-and-set on the attempt, and respects a worker that
//! said there that it lives. A running row of which Redis knows nothing is taken over too, but only when Redis has been
//! open for a lease time: until then its worker may still register again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use common::ids::JobId;
use common::job::{Job, JobState};
use common::queue::{Acked, Dispatch, Expired, Generation, Queue, Shard};
use common::service::{Duty, Report};
use common::store::Store;
use uuid::Uuid;

use super::Deps;

/// Leases, or rows, of one tick.
const BATCH: u32 = 200;

pub(super) struct Reclaim {
    store: Store,
    queue: Queue,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Until then nothing is taken over: Redis was away, and workers could not beat.
    quiet_until: Option<DateTime<Utc>>,
    /// When the rows were last looked at.
    swept_at: Option<DateTime<Utc>>,
}

impl Reclaim {
    pub(super) fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            queue: deps.queue.clone(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ttl(&self) -> TimeDelta {
        TimeDelta::from_std(self.queue.lease_ttl()).unwrap_or(TimeDelta::seconds(6))
    }

    async fn reclaim_expired(&self, shard: Shard, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let expired = self.queue.expired(shard, BATCH).await?;
        let ids: Vec<JobId> = expired.iter().map(|lease| lease.job_id).collect();
        let jobs = if ids.is_empty() {
            Vec::new()
        } else {
            self.store.jobs(&ids).await?
        };
        let mut changed = 0;
        for lease in expired {
            let job = jobs.iter().find(|job| job.id == lease.job_id);
            changed += u64::from(self.resolve(shard, lease, job, now).await?);
        }
        Ok(changed)
    }

    /// Makes Redis agree with the row of a passed lease. Answers whether anything changed.
    async fn resolve(
        &self,
        shard: Shard,
        lease: Expired,
        job: Option<&Job>,
        now: DateTime<Utc>,
    ) -> anyhow::Result<bool> {
        let Some(job) = job else {
            self.queue.forget(shard, &[(lease.job_id, 0)]).await?;
            return Ok(true);
        };
        match job.state {
            JobState::Running { attempt, .. } if attempt == lease.attempt => {
                self.take_over(shard, job, false, now).await
            }
            // Claimed, but never confirmed in Postgres; or a lease of an attempt before the one that runs.
            JobState::Queued { .. } | JobState::Running { .. } => {
                self.queue
                    .drop_claims(shard, lease.worker_id, &[(lease.job_id, lease.attempt)])
                    .await?;
                if matches!(job.state, JobState::Queued { .. }) {
                    self.queue.dispatch(&[Dispatch::from_job(job)]).await?;
                }
                Ok(true)
            }
            JobState::Scheduled { .. } | JobState::Retrying { .. } | JobState::Waiting => {
                let acked = Acked {
                    job_id: job.id,
                    attempt: lease.attempt,
                    seq: job.seq,
                    keeps_places: true,
                };
                self.queue.ack(shard, &[acked]).await?;
                Ok(true)
            }
            JobState::Succeeded { .. } | JobState::Failed { .. } | JobState::Cancelled { .. } => {
                self.queue.forget(shard, &[(job.id, job.seq)]).await?;
                Ok(true)
            }
        }
    }

    async fn take_over(&self, shard: Shard, job: &Job, gap: bool, now: DateTime<Utc>) -> anyhow::Result<bool> {
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
        let Some(taken) = self.store.reclaim(job.id, job.attempt, &tail, gap, now).await? else {
            return Ok(false);
        };
        tracing::warn!(job_id = %job.id, attempt = job.attempt, worker_id = ?job.worker_id, "worker lost: job taken over");
        metrics::counter!("hothouse_reclaims_total").increment(1);
        if taken.state.is_terminal() {
            self.queue.forget(shard, &[(taken.id, taken.seq)]).await?;
        } else {
            self.queue.dispatch(&[Dispatch::from_job(&taken)]).await?;
        }
        Ok(true)
    }

    /// Running rows that Redis does not know; `None` while it is too early to tell.
    async fn sweep(&self, now: DateTime<Utc>) -> anyhow::Result<Option<u64>> {
        let Some(opened) = self.opened(now).await? else {
            return Ok(None);
        };
        let (mut changed, mut after) = (0, JobId(Uuid::nil()));
        loop {
            let jobs = self.store.running_after(after, now - self.ttl(), BATCH).await?;
            let ids: Vec<_> = jobs.iter().map(|job| (job.tenant_id, job.id)).collect();
            let unknown = self.queue.unknown(&ids).await?;
            // Wiped in between: then every job is unknown, those of the living too.
            if !unknown.is_empty() && self.opened(now).await?.as_ref() != Some(&opened) {
                return Ok(None);
            }
            for index in unknown {
                let job = &jobs[index];
                let shard = self.queue.shard_of(job.tenant_id);
                let gap = opened
                    .get(&shard)
                    .zip(job.started_at)
                    .is_some_and(|(begun, started)| started < *begun);
                changed += u64::from(self.take_over(shard, job, gap, now).await?);
            }
            match jobs.last() {
                Some(last) if jobs.len() == usize::try_from(BATCH).unwrap_or(usize::MAX) => after = last.id,
                _ => return Ok(Some(changed)),
            }
        }
    }

    /// When each shard's generation began; `None` until all of them are open and a lease time old. Who lives has
    /// registered by then, and the sandboxes of who does not are dead.
    async fn opened(&self, now: DateTime<Utc>) -> anyhow::Result<Option<BTreeMap<Shard, DateTime<Utc>>>> {
        let mut opened = BTreeMap::new();
        for shard in self.queue.shards() {
            match self.queue.generation(shard).await? {
                Generation::Open(begun) if now - begun >= self.ttl() => opened.insert(shard, begun),
                _ => return Ok(None),
            };
        }
        Ok(Some(opened))
    }

    async fn reclaim(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let mut changed = 0;
        for shard in self.queue.shards() {
            if matches!(self.queue.generation(shard).await?, Generation::Open(_)) {
                changed += self.reclaim_expired(shard, now).await?;
            }
        }
        let is_due = self.state().swept_at.is_none_or(|at| now - at >= self.ttl());
        if is_due && let Some(swept) = self.sweep(now).await? {
            changed += swept;
            self.state().swept_at = Some(now);
        }
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
        Duration::from_millis(500)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        if let Err(error) = self.queue.ping().await {
            self.state().quiet_until = Some(now + self.ttl());
            return Err(error.into());
        }
        // Redis is just back: everybody who lives registers within a lease time.
        if self.state().quiet_until.is_some_and(|until| now < until) {
            return Ok(Report::default());
        }
        self.reclaim(now).await
    }
}
