//! What an operator changes: pauses and weights.

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
