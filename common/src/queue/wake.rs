//! Waking idle workers: the only blocking read, on a connection of its own.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;

use super::{Error, Queue, Shard};
use crate::job::spec::SlotClass;

/// How long one read blocks. Redis ends it by its own clock's ticks, up to a tenth of a second late when it has nothing to do,
/// so who waits for less looks at its own.
const BLOCK: Duration = Duration::from_secs(5);
/// How much later than that a connection counts as dead, for it must not hold the worker.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for the wake key of one slot class in a shard. It carries no job, so losing a wake costs at most the caller's own
/// time limit.
#[derive(Debug)]
pub struct Waker {
    queue: Queue,
    key: String,
    connection: Option<Connection>,
    last: String,
}

struct Connection {
    multiplexed: MultiplexedConnection,
    /// The read that is under way; it outlives calls whose time limits pass.
    reading: Option<BoxFuture<'static, Result<StreamReadReply, Error>>>,
}

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
        let Some(connection) = &mut self.connection else {
            self.connection = Some(self.connect().await?);
            return Ok(true);
        };
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let (key, last) = (&self.key, &self.last);
            let multiplexed = &connection.multiplexed;
            let reading = connection
                .reading
                .get_or_insert_with(|| next(multiplexed.clone(), key, last).boxed());
            let Ok(reply) = tokio::time::timeout_at(deadline, reading).await else {
                return Ok(false);
            };
            connection.reading = None;
            let newest = reply?
                .keys
                .into_iter()
                .next()
                .and_then(|key| key.ids.into_iter().next_back());
            if let Some(entry) = newest {
                self.last = entry.id;
                return Ok(true);
            }
        }
    }

    async fn connect(&mut self) -> Result<Connection, Error> {
        // The default response timeout of 500 ms would cut every blocking read short.
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(None);
        let client = &self.queue.inner.client;
        let mut multiplexed = client.get_multiplexed_async_connection_with_config(&config).await?;
        // From the newest entry on: what was dispatched before is claimed by the caller's own first look.
        let newest: redis::streams::StreamRangeReply = redis::cmd("XREVRANGE")
            .arg(&self.key)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut multiplexed)
            .await?;
        self.last = newest
            .ids
            .first()
            .map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
        Ok(Connection {
            multiplexed,
            reading: None,
        })
    }
}

/// What comes after an entry, or nothing after a while.
fn next(
    mut connection: MultiplexedConnection,
    key: &str,
    last: &str,
) -> impl Future<Output = Result<StreamReadReply, Error>> + use<> {
    let mut command = redis::cmd("XREAD");
    let block = u64::try_from(BLOCK.as_millis()).unwrap_or(1);
    command.arg("BLOCK").arg(block).arg("STREAMS").arg(key).arg(last);
    async move {
        let read = tokio::time::timeout(BLOCK + GRACE, command.query_async(&mut connection)).await;
        let reply: Option<StreamReadReply> =
            read.map_err(|_elapsed| Error::Reply("nothing to a blocking read".to_owned()))??;
        Ok(reply.unwrap_or_default())
    }
}
