//! Lanes: those of a rebuilt shard, several at once, and those of tenants that have more than Redis may.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use common::ids::TenantId;
use common::queue::{Crowded, Shard};

use super::Redispatch;

impl Redispatch {
    /// Dispatches what is queued in a shard, several lanes at once: nothing is claimed meanwhile.
    pub(super) async fn dispatch_lanes(&self, shard: Shard) -> anyhow::Result<u64> {
        let mut lanes = self.store.queued_lanes().await?;
        lanes.retain(|(tenant_id, _, _)| self.queue.shard_of(*tenant_id) == shard);
        let mut of_tenant = BTreeMap::<TenantId, usize>::new();
        lanes.retain(|(tenant_id, _, _)| {
            let lanes = of_tenant.entry(*tenant_id).or_default();
            *lanes += 1;
            *lanes <= self.queue.lanes_max()
        });
        for (tenant_id, _) in of_tenant
            .into_iter()
            .filter(|(_, lanes)| *lanes > self.queue.lanes_max())
        {
            self.queue.crowd(tenant_id).await?;
        }
        // One more than there is room for, so that the backlog is known to be full.
        let (lanes, limit) = (Mutex::new(lanes.into_iter()), self.dispatched_max.saturating_add(1));
        let next = || lanes.lock().unwrap_or_else(PoisonError::into_inner).next();
        let rebuild = || async {
            let mut added = 0;
            while let Some((tenant_id, queue, class)) = next() {
                let jobs = self.store.next_queued(tenant_id, &queue, &class, limit).await?;
                added += self.dispatch(&jobs).await?.added;
            }
            anyhow::Ok(added)
        };
        let (a, b, c, d) = tokio::try_join!(rebuild(), rebuild(), rebuild(), rebuild())?;
        Ok(a + b + c + d)
    }

    /// Brings in lanes of tenants that had as many as they may, when half of these are empty. Answers how many jobs it added.
    pub(super) async fn bring_lanes(&self, crowded: &[Crowded]) -> anyhow::Result<u64> {
        let (mut added, most) = (0, self.queue.lanes_max());
        for tenant in crowded.iter().filter(|tenant| has_room(tenant)) {
            let after = self.cursor().lanes.remove(&tenant.tenant_id);
            let (queue, class) = after.clone().unwrap_or_default();
            let lanes = self
                .store
                .queued_lanes_of(tenant.tenant_id, (&queue, &class), most)
                .await?;
            let is_open = |lane: &&(String, String)| tenant.open.contains(lane);
            let closed: Vec<_> = lanes.iter().filter(|lane| !is_open(lane)).collect();
            for (queue, class) in closed.iter().take(tenant.room) {
                let next = self
                    .store
                    .next_queued(tenant.tenant_id, queue, class, self.dispatched_max);
                added += self.dispatch(&next.await?).await?.added;
            }
            if let Some(last) = closed.get(tenant.room.saturating_sub(1)) {
                self.cursor().lanes.insert(tenant.tenant_id, (*last).clone());
            } else if after.is_none() && lanes.len() < most {
                self.queue.uncrowd(tenant.tenant_id).await?;
            }
        }
        Ok(added)
    }
}

/// Whether more lanes of a tenant are brought in: when half of them are empty, or they would be looked for all the time.
pub(super) fn has_room(tenant: &Crowded) -> bool {
    tenant.room >= tenant.open.len().max(1)
}
