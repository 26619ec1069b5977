//! What an operator changes: pauses and weights.

use super::{Error, Queue};
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
        let key = self.key(self.shard_of(tenant_id), "weights");
        let _new: i64 = redis::cmd("HSET")
            .arg(key)
            .arg(tenant_id.to_string())
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
