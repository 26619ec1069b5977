//! Claim: from the ready streams into a lease.

use super::{Error, Queue, Shard};
use crate::ids::{JobId, TenantId, WorkerId};
use crate::job::spec::SlotClass;
use crate::store::claim::Claim;

/// What a worker has room for.
#[derive(Clone, Debug)]
pub struct Want {
    /// Free slots.
    pub free: u32,
    /// What they are.
    pub slot: SlotClass,
    /// Labels of the worker.
    pub labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    pub queues: Vec<String>,
}

/// Jobs whose leases the worker holds now. Postgres has the last word on each.
#[derive(Clone, Debug, Default)]
pub struct Handout {
    /// The claims, in the order of their priority.
    pub claims: Vec<Claim>,
}

impl Queue {
    /// Claims up to `want.free` jobs of one shard. `rotation` says where the round over the lanes begins; a caller that
    /// counts it up treats its queues alike.
    ///
    /// # Errors
    /// [`Error::Closed`] after a wipe, until running jobs have registered again.
    pub async fn claim(&self, shard: Shard, worker: WorkerId, want: &Want, rotation: u32) -> Result<Handout, Error> {
        let list = |names: &[String]| {
            if names.is_empty() {
                String::new()
            } else {
                format!(",{},", names.join(","))
            }
        };
        let mut invocation = self.inner.scripts.claim.key(self.root(shard));
        invocation
            .arg(worker.to_string())
            .arg(u64::try_from(self.inner.lease_ttl.as_millis()).unwrap_or(u64::MAX))
            .arg(self.clock_offset_ms())
            .arg(want.free)
            .arg(want.slot.as_str())
            .arg(list(&want.labels))
            .arg(list(&want.queues))
            .arg(rotation);
        let reply: redis::Value = invocation.invoke_async(&mut self.link().await?).await?;
        if matches!(reply, redis::Value::Int(-1)) {
            return Err(Error::Closed);
        }
        let flat: Vec<String> = redis::from_redis_value(reply).map_err(|error| Error::Reply(error.to_string()))?;
        let claims = flat.chunks_exact(3).map(read).collect::<Result<_, _>>()?;
        Ok(Handout { claims })
    }

    /// Forgets claims that Postgres did not confirm.
    ///
    /// # Errors
    /// When Redis is away: the leases pass by themselves.
    pub async fn drop_claims(&self, shard: Shard, worker: WorkerId, claims: &[(JobId, u32)]) -> Result<(), Error> {
        if claims.is_empty() {
            return Ok(());
        }
        let mut invocation = self.inner.scripts.drop.key(self.root(shard));
        invocation.arg(worker.to_string());
        for (job_id, attempt) in claims {
            invocation.arg(job_id.to_string()).arg(*attempt);
        }
        let _dropped: i64 = invocation.invoke_async(&mut self.link().await?).await?;
        Ok(())
    }

    /// How many jobs of the tenant come before this one in its backlog; `None` when it is not in one.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn position(
        &self,
        tenant_id: TenantId,
        queue: &str,
        class: &str,
        job_id: JobId,
    ) -> Result<Option<u64>, Error> {
        let lane = super::dispatch::lane(queue, class);
        let key = self.key(self.shard_of(tenant_id), &format!("b:{lane}:{tenant_id}"));
        let rank = redis::cmd("ZRANK")
            .arg(key)
            .arg(job_id.to_string())
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(rank)
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
