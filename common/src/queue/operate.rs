//! What an operator changes: pauses and weights.

use std::collections::BTreeMap;

use super::{Error, Queue, Shard};
use crate::ids::TenantId;

impl Queue {
    /// Sets which queues release nothing, in every shard, and wakes the workers.
    ///
    /// # Errors
    /// When Redis is away: the redispatch duty sets them again from Postgres.
    pub async fn set_paused(&self, paused: &[String]) -> Result<(), Error> {
        let mut connection = self.connection().await?;
        for shard in self.shards() {
            let key = self.key(shard, "paused");
            let mut pipe = redis::pipe();
            pipe.atomic().cmd("DEL").arg(&key).ignore();
            if !paused.is_empty() {
                pipe.cmd("SADD").arg(&key).arg(paused).ignore();
            }
            self.push_wake(&mut pipe, shard);
            let () = pipe.query_async(&mut connection).await?;
        }
        Ok(())
    }

    /// Sets a tenant's weight.
    ///
    /// # Errors
    /// When Redis is away: the redispatch duty sets it again from Postgres.
    pub async fn set_weight(&self, tenant_id: TenantId, weight: u32) -> Result<(), Error> {
        self.put_weight(self.shard_of(tenant_id), &tenant_id.to_string(), weight)
            .await
    }

    /// Sets a queue's weight, in every shard.
    ///
    /// # Errors
    /// As [`Self::set_weight`].
    pub async fn set_queue_weight(&self, queue: &str, weight: u32) -> Result<(), Error> {
        for shard in self.shards() {
            self.put_weight(shard, &format!("q:{queue}"), weight).await?;
        }
        Ok(())
    }

    /// The weights that a shard knows, by the names under which it keeps them.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn weights(&self, shard: Shard) -> Result<BTreeMap<String, u32>, Error> {
        Ok(redis::cmd("HGETALL")
            .arg(self.key(shard, "weights"))
            .query_async(&mut self.connection().await?)
            .await?)
    }

    /// Makes every shard know these weights and no others: whose is 1 needs none. `known` was read with [`Self::weights`]
    /// before the wanted ones were read from Postgres, so that what is set meanwhile is not undone.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn sync_weights(
        &self,
        known: &BTreeMap<Shard, BTreeMap<String, u32>>,
        tenants: &[(TenantId, u32)],
        queues: &[(String, u32)],
    ) -> Result<(), Error> {
        let none = BTreeMap::new();
        for shard in self.shards() {
            let known = known.get(&shard).unwrap_or(&none);
            let tenants = tenants.iter().filter(|(id, _)| self.shard_of(*id) == shard);
            let wanted: BTreeMap<String, u32> = tenants
                .map(|(id, weight)| (id.to_string(), *weight))
                .chain(queues.iter().map(|(queue, weight)| (format!("q:{queue}"), *weight)))
                .collect();
            for (of, weight) in wanted.iter().filter(|(of, weight)| known.get(*of) != Some(*weight)) {
                self.put_weight(shard, of, *weight).await?;
            }
            let gone: Vec<&String> = known.keys().filter(|of| !wanted.contains_key(*of)).collect();
            if !gone.is_empty() {
                let _removed: i64 = redis::cmd("HDEL")
                    .arg(self.key(shard, "weights"))
                    .arg(gone)
                    .query_async(&mut self.connection().await?)
                    .await?;
            }
        }
        Ok(())
    }

    async fn put_weight(&self, shard: Shard, of: &str, weight: u32) -> Result<(), Error> {
        let _new: i64 = redis::cmd("HSET")
            .arg(self.key(shard, "weights"))
            .arg(of)
            .arg(weight.max(1))
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(())
    }

    /// Keys below the prefix and their number, for tests that check that nothing is left over.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn keys(&self) -> Result<Vec<String>, Error> {
        let mut connection = self.connection().await?;
        let mut keys = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let (next, found): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{}:*", self.inner.prefix))
                .arg("COUNT")
                .arg(1_000)
                .query_async(&mut connection)
                .await?;
            keys.extend(found);
            cursor = next;
            if cursor == 0 {
                keys.sort_unstable();
                return Ok(keys);
            }
        }
    }
}
