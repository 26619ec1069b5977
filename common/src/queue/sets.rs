//! Sets of names, about each of which more is asked.

use super::{Error, Queue, Shard};

/// Members that are asked about in one round trip.
pub(super) const AT_ONCE: usize = 500;

impl Queue {
    /// The members of a set of a shard.
    pub(super) async fn members(&self, shard: Shard, set: &str) -> Result<Vec<String>, Error> {
        Ok(redis::cmd("SMEMBERS")
            .arg(self.key(shard, set))
            .query_async(&mut self.link().await?)
            .await?)
    }
}
