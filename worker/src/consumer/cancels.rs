//! Hearing that a held job should be cancelled: at once over pub/sub, and from the worker's own set when that was lost.

use std::time::Duration;

use common::ids::WorkerId;
use common::queue::{Channel, Queue};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::held::{Held, Stop};

/// How often the set is read.
const POLL: Duration = Duration::from_millis(500);

/// Listens until `stop`.
pub async fn run(worker_id: WorkerId, queue: Queue, held: Held, stop: CancellationToken) {
    let mut hints = None;
    loop {
        if hints.is_none() {
            hints = queue.subscribe(Channel::Cancels).await.ok();
        }
        let heard = async {
            match &mut hints {
                Some(stream) => stream.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            hint = heard => match hint {
                // Every worker hears every request; only the holder has something to stop.
                Some(hint) => held.stop(hint.job_id, Stop::Cancel),
                None => hints = None,
            },
            () = tokio::time::sleep(POLL) => {
                if !held.is_empty() {
                    poll(worker_id, &queue, &held).await;
                }
            }
        }
    }
}

async fn poll(worker_id: WorkerId, queue: &Queue, held: &Held) {
    for shard in queue.shards() {
        match queue.take_cancels(shard, worker_id).await {
            Ok(ids) => ids.into_iter().for_each(|job_id| held.stop(job_id, Stop::Cancel)),
            Err(error) => tracing::debug!(%error, "the cancel set cannot be read"),
        }
    }
}
