//! Leases: the timed right to work on one job.
//!
//! A worker that claims a job holds a lease until it settles the job or stops extending it. The lease is a member of the
//! shard's `leases` set with its end as score; Redis's clock alone decides when it has passed.
//!
//! # Invariants
//! - At most one live lease per job; (attempt, worker) is its fence, and attempt grows with each claim.
//! - A settled or passed lease writes nothing: every script compares the fence first.
//!
//! # Not here
//! Choosing the next job is [`super::claim`]; what happens to a passed lease is the scheduler's reclaim duty.

use std::time::Duration;

use super::{Dispatch, Error, Queue, Shard};
use crate::ids::{JobId, TenantId, WorkerId};
use crate::job::StateName;

/// The answer to one heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Extended.
    Ok,
    /// Somebody else's: stop working on it.
    Lost,
    /// It has passed. Whoever could not reach Redis, but said in Postgres that it lives, registers again.
    Passed,
    /// Redis was wiped: confirm in Postgres and register again.
    Unknown,
}

/// A settled attempt whose lease ends.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    /// The job.
    pub job_id: JobId,
    /// The fence.
    pub attempt: u32,
    /// Number of the change, for followers.
    pub seq: u64,
    /// Which of its places the job keeps.
    pub keeps: Keeps,
}

/// Which of its places a job keeps when its attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// None: it has ended.
    Nothing,
    /// All: it is tried again.
    Places,
    /// Its conversation's alone: it waits, perhaps for jobs that need the others.
    Conversation,
}

impl Keeps {
    /// What a job in this state keeps after its attempt.
    pub fn of(state: StateName) -> Self {
        match state {
            StateName::Succeeded | StateName::Failed | StateName::Cancelled => Self::Nothing,
            StateName::Waiting => Self::Conversation,
            StateName::Scheduled | StateName::Queued | StateName::Running | StateName::Retrying => Self::Places,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Places => 1,
            Self::Conversation => 2,
        }
    }
}

/// A lease that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The job.
    pub job_id: JobId,
    /// The attempt that Redis expected of the holder.
    pub attempt: u32,
    /// The holder.
    pub worker_id: WorkerId,
    /// Whether Redis knows the lease from Postgres alone: the holder has not registered since it was wiped.
    pub is_adopted: bool,
}

/// How long the tail of a finished job's log stays in Redis: long enough for a follower that is just reading it.
const LOG_AFTER_END_S: u32 = 60;

impl Queue {
    /// Extends leases of one shard; answers one beat for each, in order.
    ///
    /// # Errors
    /// When Redis is away: then the worker says in Postgres that it lives.
    pub async fn heartbeat(&self, shard: Shard, worker: WorkerId, held: &[(JobId, u32)]) -> Result<Vec<Beat>, Error> {
        let mut invocation = self.inner.scripts.heartbeat.key(self.root(shard));
        self.push_lease_args(&mut invocation, worker);
        for (job_id, attempt) in held {
            invocation.arg(job_id.to_string()).arg(*attempt);
        }
        let codes: Vec<i64> = invocation.invoke_async(&mut self.connection().await?).await?;
        Ok(codes
            .into_iter()
            .map(|code| match code {
                1 => Beat::Ok,
                0 => Beat::Lost,
                2 => Beat::Passed,
                _ => Beat::Unknown,
            })
            .collect())
    }

    /// Puts running attempts back that Postgres confirmed; answers for each whether it is the worker's now.
    /// All are of one shard and made by [`Dispatch::from_running`].
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn register(&self, shard: Shard, worker: WorkerId, running: &[Dispatch]) -> Result<Vec<bool>, Error> {
        let mut invocation = self.inner.scripts.register.key(self.root(shard));
        self.push_lease_args(&mut invocation, worker);
        for job in running {
            job.push_args(&mut invocation);
        }
        let codes: Vec<i64> = invocation.invoke_async(&mut self.connection().await?).await?;
        Ok(codes.into_iter().map(|code| code == 1).collect())
    }

    /// Ends the leases of settled attempts of one shard and tells followers.
    ///
    /// # Errors
    /// When Redis is away: the leases pass, and the reclaim duty sees that their jobs have settled.
    pub async fn ack(&self, shard: Shard, settled: &[Acked]) -> Result<(), Error> {
        /// Jobs of one script: some three milliseconds.
        const AT_ONCE: usize = 500;
        for chunk in settled.chunks(AT_ONCE) {
            let mut invocation = self.inner.scripts.ack.key(self.root(shard));
            invocation.arg(LOG_AFTER_END_S);
            for acked in chunk {
                invocation
                    .arg(acked.job_id.to_string())
                    .arg(acked.attempt)
                    .arg(acked.seq)
                    .arg(acked.keeps.code());
            }
            let _ended: i64 = invocation.invoke_async(&mut self.link().await?).await?;
        }
        Ok(())
    }

    /// Leases of one shard that have passed, the longest ago first, `limit` of them after the first `past`. A job that was held
    /// back behind one of them is released.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn expired(&self, shard: Shard, past: u32, limit: u32) -> Result<Vec<Expired>, Error> {
        let mut invocation = self.inner.scripts.expired.key(self.root(shard));
        invocation.arg(self.clock_offset_ms()).arg(limit).arg(past);
        let flat: Vec<String> = invocation.invoke_async(&mut self.link().await?).await?;
        flat.chunks_exact(4)
            .map(|fields| {
                let bad = |what: &str| Error::Reply(format!("a lease with {what}"));
                Ok(Expired {
                    job_id: fields[0].parse().map_err(|_garbage| bad("a bad id"))?,
                    attempt: fields[1].parse().map_err(|_garbage| bad("a bad attempt"))?,
                    worker_id: fields[2].parse().map_err(|_garbage| bad("a bad worker"))?,
                    is_adopted: fields[3] == "1",
                })
            })
            .collect()
    }

    /// How long until the first lease of a shard passes, if there is one. Nobody begins a shorter one than
    /// [`Queue::lease_ttl`].
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn first_expiry(&self, shard: Shard) -> Result<Option<Duration>, Error> {
        let (first, (seconds, micros)): (Vec<(String, f64)>, (i64, i64)) = redis::pipe()
            .cmd("ZRANGE")
            .arg(self.key(shard, "leases"))
            .arg(0)
            .arg(0)
            .arg("WITHSCORES")
            .cmd("TIME")
            .query_async(&mut self.link().await?)
            .await?;
        let now_ms = seconds * 1_000 + micros / 1_000 + self.clock_offset_ms();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "milliseconds since 1970 are exact in a double"
        )]
        let wait_ms = first.first().map(|(_, at_ms)| *at_ms as i64 - now_ms);
        Ok(wait_ms.map(|wait_ms| Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0))))
    }

    /// Forgets jobs of one shard, whoever holds them: they have ended in Postgres, or are dispatched anew.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn forget(&self, shard: Shard, jobs: &[(JobId, u64)]) -> Result<(), Error> {
        let ended = jobs.iter().map(|(job_id, seq)| (*job_id, *seq, true));
        self.cancel_in(shard, ended.collect()).await
    }

    /// Takes a cancelled job out of Redis, or tells the worker that holds it. `seq` is the number of the change.
    ///
    /// # Errors
    /// When Redis is away: the worker asks Postgres when it registers again.
    pub async fn cancel(&self, tenant_id: TenantId, job_id: JobId, seq: u64, ended: bool) -> Result<(), Error> {
        self.cancel_in(self.shard_of(tenant_id), vec![(job_id, seq, ended)])
            .await
    }

    /// The same for many jobs of one tenant, a bounded number at a time: others run in between.
    ///
    /// # Errors
    /// As [`Self::cancel`].
    pub async fn cancel_many(&self, tenant_id: TenantId, jobs: Vec<(JobId, u64, bool)>) -> Result<(), Error> {
        self.cancel_in(self.shard_of(tenant_id), jobs).await
    }

    async fn cancel_in(&self, shard: Shard, jobs: Vec<(JobId, u64, bool)>) -> Result<(), Error> {
        /// Jobs of one script: some three milliseconds.
        const AT_ONCE: usize = 250;
        let mut connection = self.connection().await?;
        for chunk in jobs.chunks(AT_ONCE) {
            let mut invocation = self.inner.scripts.cancel.key(self.root(shard));
            for (job_id, seq, ended) in chunk {
                invocation.arg(job_id.to_string()).arg(*seq).arg(u8::from(*ended));
            }
            let _known: i64 = invocation.invoke_async(&mut connection).await?;
        }
        Ok(())
    }

    /// Takes the jobs that a worker was told to stop.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn take_cancels(&self, shard: Shard, worker: WorkerId) -> Result<Vec<JobId>, Error> {
        let key = self.key(shard, &format!("cancel:{worker}"));
        let ids: Vec<String> = redis::cmd("SPOP")
            .arg(key)
            .arg(1_000)
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    fn push_lease_args(&self, invocation: &mut redis::ScriptInvocation<'_>, worker: WorkerId) {
        invocation
            .arg(worker.to_string())
            .arg(u64::try_from(self.inner.lease_ttl.as_millis()).unwrap_or(u64::MAX))
            .arg(self.clock_offset_ms());
    }
}
