//! Mending the index from Postgres: running jobs that it does not know, and entries whose job has ended.

use super::{Dispatch, Error, Queue, Shard};
use crate::ids::JobId;
use crate::job::Job;

/// Where strays are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Among {
    /// Jobs that went on after an attempt, and have no lease since: those that may have places that nothing would free.
    Unleased,
    /// The whole index: what is deferred, or has gates of its own and no lease.
    All,
}

impl Queue {
    /// Begins a lease for each of these running jobs of one shard that Redis does not know, in the name of the worker that
    /// Postgres names, and takes its places. What Redis knows stays as it is. Answers how many it began.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn adopt(&self, shard: Shard, running: &[Job]) -> Result<u64, Error> {
        if running.is_empty() {
            return Ok(0);
        }
        let mut invocation = self.inner.scripts.adopt.key(self.root(shard));
        invocation
            .arg(u64::try_from(self.inner.lease_ttl.as_millis()).unwrap_or(u64::MAX))
            .arg(self.clock_offset_ms());
        for job in running {
            let Some(worker_id) = job.worker_id else { continue };
            Dispatch::from_running(job).push_args(&mut invocation);
            invocation.arg(worker_id.to_string());
        }
        Ok(invocation.invoke_async(&mut self.connection().await?).await?)
    }

    /// Looks at some `count` entries of a shard from `cursor` on, which begins at 0. Answers the next cursor, 0 at the end, and
    /// those jobs whose row may have ended without a word to Redis.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn strays(
        &self,
        shard: Shard,
        among: Among,
        cursor: u64,
        count: u32,
    ) -> Result<(u64, Vec<JobId>), Error> {
        let mut invocation = self.inner.scripts.stray.key(self.root(shard));
        let among = match among {
            Among::Unleased => "unleased",
            Among::All => "idx",
        };
        invocation.arg(among).arg(cursor).arg(count);
        let reply: Vec<String> = invocation.invoke_async(&mut self.link().await?).await?;
        let bad = || Error::Reply("strays without a cursor".to_owned());
        let (next, ids) = reply.split_first().ok_or_else(bad)?;
        let next = next.parse().map_err(|_garbage| bad())?;
        Ok((next, ids.iter().filter_map(|id| id.parse().ok()).collect()))
    }
}
