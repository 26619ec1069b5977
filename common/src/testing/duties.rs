//! What the scheduler's duties do, in one step each and without waiting: for tests of the store and the queue alone.

use super::TestEnv;
use crate::ids::JobId;
use crate::job::{Job, JobState};
use crate::queue::{Acked, Dispatch, Keeps};
use crate::store::backlog::Place;

impl TestEnv {
    /// Promotes everything that is due, and dispatches it.
    pub async fn promote(&self) -> Vec<JobId> {
        let promoted = self.store.promote(self.clock.now(), 1_000).await.unwrap();
        let dispatches: Vec<Dispatch> = promoted.admitted().map(Dispatch::from_job).collect();
        self.queue.dispatch(&dispatches).await.unwrap();
        promoted.jobs.iter().map(|job| job.id).collect()
    }

    /// Dispatches the queued rows that Redis does not know.
    pub async fn redispatch(&self) -> usize {
        let page = self.store.queued_after(&Place::first(), &[], 10_000).await;
        let jobs = page.unwrap().jobs;
        let unknown = self.queue.unknown(&jobs).await.unwrap();
        let missing: Vec<JobId> = unknown.into_iter().map(|index| jobs[index].1).collect();
        let briefs = self.store.briefs(&missing).await.unwrap();
        let dispatches: Vec<Dispatch> = briefs.iter().map(Dispatch::from_brief).collect();
        self.queue.dispatch(&dispatches).await.unwrap();
        dispatches.len()
    }

    /// Begins a generation in every shard of a wiped Redis; who registered before does so again.
    pub async fn begin(&self) {
        for shard in self.queue.shards() {
            self.queue.begin_generation(shard).await.unwrap();
        }
    }

    /// Rebuilds a wiped Redis from the queued rows and opens it. Running attempts must have registered since [`Self::begin`].
    pub async fn rebuild(&self) {
        self.begin().await;
        self.redispatch().await;
        self.open().await;
    }

    /// Takes over what passed leases leave behind. Answers the jobs that were taken from their worker.
    pub async fn reclaim(&self) -> Vec<Job> {
        let mut taken = Vec::new();
        for shard in self.queue.shards() {
            for lease in self.queue.expired(shard, 0, 1_000).await.unwrap() {
                let job = self.row(lease.job_id).await;
                match job.state {
                    JobState::Running { attempt, worker_id, .. }
                        if (attempt, worker_id) == (lease.attempt, lease.worker_id) =>
                    {
                        taken.extend(self.take_over(&job, false).await);
                    }
                    JobState::Queued { .. } => {
                        let claim = [(lease.job_id, lease.attempt)];
                        self.queue.drop_passed(shard, lease.worker_id, &claim).await.unwrap();
                        self.dispatch_jobs(std::slice::from_ref(&job)).await;
                    }
                    JobState::Running { .. } => {
                        self.queue.adopt(shard, std::slice::from_ref(&job)).await.unwrap();
                    }
                    JobState::Scheduled { .. } | JobState::Retrying { .. } | JobState::Waiting { .. } => {
                        let acked = Acked {
                            job_id: job.id,
                            attempt: lease.attempt,
                            seq: job.seq,
                            keeps: Keeps::of(job.state.name()),
                        };
                        self.queue.ack(shard, &[acked]).await.unwrap();
                    }
                    _ => self.queue.forget(shard, &[(job.id, job.seq)]).await.unwrap(),
                }
            }
        }
        taken
    }

    /// Takes a running job from its worker, with what Redis has of its log. `None` when Postgres refuses.
    pub async fn take_over(&self, job: &Job, gap: bool) -> Option<Job> {
        let mut tail = Vec::new();
        loop {
            let after = tail.last().map_or(0, |event: &crate::job::event::Event| event.seq);
            let more = self.queue.tail(job.tenant_id, job.id, after).await.unwrap();
            if more.is_empty() {
                break;
            }
            tail.extend(more);
        }
        let taken = self
            .store
            .reclaim(job.id, job.attempt, &tail, gap, self.clock.now())
            .await
            .unwrap()?;
        if taken.state.is_terminal() {
            self.queue
                .forget(self.queue.shard_of(taken.tenant_id), &[(taken.id, taken.seq)])
                .await
                .unwrap();
        } else {
            self.dispatch_jobs(std::slice::from_ref(&taken)).await;
        }
        Some(taken)
    }

    async fn dispatch_jobs(&self, jobs: &[Job]) {
        let dispatches: Vec<Dispatch> = jobs.iter().map(Dispatch::from_job).collect();
        self.queue.dispatch(&dispatches).await.unwrap();
    }
}
