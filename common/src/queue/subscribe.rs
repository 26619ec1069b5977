//! Hints over pub/sub: they make somebody look, and carry nothing that would be missed.

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::{Error, Queue};
use crate::ids::JobId;

/// What to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A job's log has grown, or its state has changed.
    Hints,
    /// Somebody asked to cancel a job that runs.
    Cancels,
}

/// Look at this job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The job.
    pub job_id: JobId,
    /// Its log has events up to this number at least.
    pub seq: u64,
}

impl Queue {
    /// Hints of all shards over one connection. The stream ends when the connection does: subscribe again, and look at
    /// everything once, because what was said meanwhile is gone.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn subscribe(&self, channel: Channel) -> Result<BoxStream<'static, Hint>, Error> {
        let name = match channel {
            Channel::Hints => "hints",
            Channel::Cancels => "cancels",
        };
        let subscribed = async {
            let mut pubsub = self.inner.client.get_async_pubsub().await?;
            for shard in self.shards() {
                pubsub.subscribe(self.key(shard, name)).await?;
            }
            Ok::<_, Error>(pubsub)
        };
        // The library waits for ever for a server that takes connections and says nothing.
        let subscribed = tokio::time::timeout(self.inner.response_timeout, subscribed).await;
        let pubsub = subscribed.map_err(|_elapsed| Error::Slow)??;
        let hints = pubsub
            .into_on_message()
            .flat_map(|message| stream::iter(read(message.get_payload_bytes())));
        Ok(hints.boxed())
    }
}

/// The hints of a message: attempts that ended together share one.
fn read(message: &[u8]) -> Vec<Hint> {
    let text = str::from_utf8(message).unwrap_or_default();
    let hints = text.split(' ').filter_map(|hint| {
        let (job_id, seq) = hint.split_once(':')?;
        Some(Hint {
            job_id: job_id.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    });
    hints.collect()
}
