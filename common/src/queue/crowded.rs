//! Tenants with more lanes than Redis may have of one.

use super::dispatch::lane;
use super::sets::AT_ONCE;
use super::{Error, Queue};
use crate::ids::TenantId;

/// A tenant that once had as many lanes in Redis as it may: some of its others may be in Postgres alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowded {
    /// Who.
    pub tenant_id: TenantId,
    /// The queues and classes that Redis has; two of the same are two lanes, one of them of jobs that are claimed alone.
    pub open: Vec<(String, String)>,
    /// How many more it may have.
    pub room: usize,
}

impl Queue {
    /// Most lanes of one tenant.
    pub fn lanes_max(&self) -> usize {
        usize::try_from(self.inner.lanes_max).unwrap_or(usize::MAX)
    }

    /// The tenants that once had as many lanes as they may.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn crowded(&self) -> Result<Vec<Crowded>, Error> {
        let mut crowded = Vec::new();
        for shard in self.shards() {
            for tenants in self.members(shard, "crowded").await?.chunks(AT_ONCE) {
                let mut pipe = redis::pipe();
                for tenant in tenants {
                    pipe.cmd("SMEMBERS").arg(self.key(shard, &format!("lanes:{tenant}")));
                }
                let lanes: Vec<Vec<String>> = pipe.query_async(&mut self.link().await?).await?;
                let known = tenants.iter().zip(lanes);
                crowded.extend(known.filter_map(|(tenant, lanes)| self.crowded_of(tenant, &lanes)));
            }
        }
        Ok(crowded)
    }

    fn crowded_of(&self, tenant: &str, lanes: &[String]) -> Option<Crowded> {
        let lane = |lane: &String| {
            let (queue, class) = lane.split_once('/')?;
            Some((queue.to_owned(), class.trim_end_matches('!').to_owned()))
        };
        Some(Crowded {
            tenant_id: tenant.parse().ok()?,
            room: self.lanes_max().saturating_sub(lanes.len()),
            open: lanes.iter().filter_map(lane).collect(),
        })
    }

    /// Whether a tenant once had as many lanes as it may, and this one is not among those that it has now.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn is_crowded_out(&self, tenant_id: TenantId, queue: &str, class: &str) -> Result<bool, Error> {
        let (shard, tenant) = (self.shard_of(tenant_id), tenant_id.to_string());
        let mut pipe = redis::pipe();
        pipe.cmd("SISMEMBER").arg(self.key(shard, "crowded")).arg(&tenant);
        pipe.cmd("SISMEMBER")
            .arg(self.key(shard, &format!("lanes:{tenant}")))
            .arg(lane(queue, class, false));
        let (is_crowded, is_open): (bool, bool) = pipe.query_async(&mut self.connection().await?).await?;
        Ok(is_crowded && !is_open)
    }

    /// Says that a tenant has more lanes than it may.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn crowd(&self, tenant_id: TenantId) -> Result<(), Error> {
        self.mark_crowded("SADD", tenant_id).await
    }

    /// Says that Redis has all lanes of a tenant.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn uncrowd(&self, tenant_id: TenantId) -> Result<(), Error> {
        self.mark_crowded("SREM", tenant_id).await
    }

    async fn mark_crowded(&self, command: &str, tenant_id: TenantId) -> Result<(), Error> {
        let _changed: i64 = redis::cmd(command)
            .arg(self.key(self.shard_of(tenant_id), "crowded"))
            .arg(tenant_id.to_string())
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(())
    }
}
