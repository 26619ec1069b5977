//! Claim: from the backlogs into a lease.

use std::time::Duration;

use super::{Error, Queue, Shard};
use crate::ids::{JobId, WorkerId};
use crate::job::spec::SlotClass;
use crate::store::claim::Claim;

/// Most jobs of one claim: while the script hands them out Redis answers nobody else, some five milliseconds.
const AT_ONCE: u32 = 256;

/// What a worker has room for.
#[derive(Clone, Debug)]
pub struct Want {
    /// Free slots; with none the worker only asks what else a handout tells.
    pub free: u32,
    /// What they are.
    pub slot: SlotClass,
    /// Labels of the worker.
    pub labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    pub queues: Vec<String>,
    /// What else it does. With [`Mode::Alone`] one job at most is claimed.
    pub mode: Mode,
}

/// What else the worker does at the moment of a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It may hold other jobs.
    #[default]
    Busy,
    /// The same, and it does not empty itself for a job that is claimed alone.
    Staying,
    /// It holds none.
    Idle,
    /// It holds none, and claims nothing else until the job that it gets has ended: for one that killed its workers.
    Alone,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Staying => "staying",
            Self::Idle => "idle",
            Self::Alone => "alone",
        }
    }
}

/// Jobs whose leases the worker holds now. Postgres has the last word on each.
#[derive(Clone, Debug, Default)]
pub struct Handout {
    /// The claims, in the order of their priority.
    pub claims: Vec<Claim>,
    /// The slots are full, so there may be more; else nothing can be released until the workers are woken.
    pub has_more: bool,
    /// When a limit by time may let something more through; none when nothing waits for one.
    pub opens_in: Option<Duration>,
    /// A job that is claimed alone waits: finish what is held, then claim with [`Mode::Alone`].
    pub is_called_alone: bool,
}

impl Queue {
    /// Claims up to `want.free` jobs of one shard; of many, a part.
    ///
    /// # Errors
    /// [`Error::Closed`] after a wipe, or from a server that may be behind, until running jobs have registered again.
    pub async fn claim(&self, shard: Shard, worker: WorkerId, want: &Want) -> Result<Handout, Error> {
        let list = |names: &[String]| {
            if names.is_empty() {
                String::new()
            } else {
                let mut names = names.to_vec();
                names.sort_unstable();
                format!(",{},", names.join(","))
            }
        };
        let free = want.free.min(if want.mode == Mode::Alone { 1 } else { AT_ONCE });
        let mut link = self.own_link(shard).await?.ok_or(Error::Closed)?;
        let mut invocation = self.inner.scripts.claim.key(self.root(shard));
        invocation
            .arg(worker.to_string())
            .arg(u64::try_from(self.inner.lease_ttl.as_millis()).unwrap_or(u64::MAX))
            .arg(self.clock_offset_ms())
            .arg(free)
            .arg(want.slot.as_str())
            .arg(list(&want.labels))
            .arg(list(&want.queues))
            .arg(want.mode.as_str())
            .arg(self.inner.dispatched_max);
        let reply: redis::Value = invocation.invoke_async(&mut link).await?;
        if matches!(reply, redis::Value::Int(-1)) {
            return Err(Error::Closed);
        }
        let flat: Vec<String> = redis::from_redis_value(reply).map_err(|error| Error::Reply(error.to_string()))?;
        let (Some(opens_in), Some(called)) = (flat.first(), flat.get(1)) else {
            return Err(Error::Reply("a handout without its head".to_owned()));
        };
        let claims: Vec<Claim> = flat[2..].chunks_exact(3).map(read).collect::<Result<_, _>>()?;
        Ok(Handout {
            has_more: claims.len() >= free as usize,
            opens_in: opens_in.parse().ok().map(Duration::from_millis),
            is_called_alone: called == "1",
            claims,
        })
    }

    /// Forgets claims that Postgres did not confirm.
    ///
    /// # Errors
    /// When Redis is away: the leases pass by themselves.
    pub async fn drop_claims(&self, shard: Shard, worker: WorkerId, claims: &[(JobId, u32)]) -> Result<(), Error> {
        self.drop_as(shard, worker, claims, "").await
    }

    /// The same, but for those whose leases live: their worker may have got its answer from Postgres after all.
    ///
    /// # Errors
    /// As [`Self::drop_claims`].
    pub async fn drop_passed(&self, shard: Shard, worker: WorkerId, claims: &[(JobId, u32)]) -> Result<(), Error> {
        self.drop_as(shard, worker, claims, "passed").await
    }

    async fn drop_as(&self, shard: Shard, worker: WorkerId, claims: &[(JobId, u32)], which: &str) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut invocation = self.inner.scripts.drop.key(self.root(shard));
        invocation
            .arg(worker.to_string())
            .arg(self.clock_offset_ms())
            .arg(which);
        for (job_id, attempt) in claims {
            invocation.arg(job_id.to_string()).arg(*attempt);
        }
        let _dropped: i64 = invocation.invoke_async(&mut self.link().await?).await?;
        Ok(())
    }
}

fn read(fields: &[String]) -> Result<Claim, Error> {
    let bad = |what: &str| Error::Reply(format!("a claim with {what}"));
    Ok(Claim {
        job_id: fields[0].parse().map_err(|_garbage| bad("a bad id"))?,
        attempt: fields[1].parse().map_err(|_garbage| bad("a bad attempt"))?,
        is_turn: fields[2] == "1",
    })
}
