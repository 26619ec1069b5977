//! Waking idle workers: the only blocking read, on a connection of its own.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;

use super::{Error, Queue, Shard};
use crate::job::spec::SlotClass;

/// Waits for the wake key of one slot class in a shard. It carries no job, so losing a wake costs at most the caller's own
/// time limit.
#[derive(Debug)]
pub struct Waker {
    queue: Queue,
    key: String,
    connection: Option<Connection>,
    last: String,
}

struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Queue {
    /// A waker of workers with such slots, in one shard.
    pub fn waker(&self, shard: Shard, slot: SlotClass) -> Waker {
        Waker {
            queue: self.clone(),
            key: self.wake_key(shard, slot),
            connection: None,
            last: "$".to_owned(),
        }
    }

    pub(super) fn wake_key(&self, shard: Shard, slot: SlotClass) -> String {
        self.key(shard, &format!("wake:{}", slot.as_str()))
    }
}

impl Waker {
    /// Waits until something was dispatched for these slots since the last call, or `limit` has passed. Answers whether it
    /// was woken.
    ///
    /// # Errors
    /// When Redis is away; the next call connects anew.
    pub async fn wait(&mut self, limit: Duration) -> Result<bool, Error> {
        let waited = self.read(limit).await;
        if waited.is_err() {
            self.connection = None;
        }
        waited
    }

    async fn read(&mut self, limit: Duration) -> Result<bool, Error> {
        if self.connection.is_none() {
            // The default response timeout of 500 ms would cut every blocking read short.
            let config = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(Duration::from_secs(2)))
                .set_response_timeout(None);
            let client = &self.queue.inner.client;
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            // From the newest entry on: what was dispatched before is claimed by the caller's own first look.
            let newest: redis::streams::StreamRangeReply = redis::cmd("XREVRANGE")
                .arg(&self.key)
                .arg("+")
                .arg("-")
                .arg("COUNT")
                .arg(1)
                .query_async(&mut connection)
                .await?;
            self.last = newest
                .ids
                .first()
                .map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
            self.connection = Some(Connection(connection));
            return Ok(true);
        }
        let Some(Connection(connection)) = &mut self.connection else {
            return Ok(false);
        };
        let mut command = redis::cmd("XREAD");
        command
            .arg("BLOCK")
            .arg(u64::try_from(limit.as_millis()).unwrap_or(1).max(1))
            .arg("STREAMS")
            .arg(&self.key)
            .arg(&self.last);
        // A connection that is dead without a word must not hold the worker: a little more than the block itself.
        let read = tokio::time::timeout(limit + Duration::from_secs(2), command.query_async(connection)).await;
        let reply: Option<StreamReadReply> = match read {
            Ok(reply) => reply?,
            Err(_elapsed) => return Err(Error::Reply("nothing to a blocking read".to_owned())),
        };
        let newest = reply
            .and_then(|reply| reply.keys.into_iter().next())
            .and_then(|key| key.ids.into_iter().next_back());
        let woken = newest.is_some();
        if let Some(entry) = newest {
            self.last = entry.id;
        }
        Ok(woken)
    }
}
