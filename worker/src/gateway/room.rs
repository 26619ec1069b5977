//! Room for the requests of programs, each of which is held from its first byte until its answer begins.
//!
//! Short ones are bounded by how many an attempt may make at once. Long ones share what there is for all attempts of the
//! worker, of which no attempt has more than a part.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::answer::Refusal;

/// Bytes of the longest request that is short.
pub(super) const SHORT: usize = 1 << 20;

/// Bytes of long requests at once, of one attempt.
const OWN: usize = 64 << 20;

/// The same of all attempts of a worker. On its way a request is copied once or twice.
const ALL: usize = 256 << 20;

/// Long requests that are looked at at once. Each keeps a thread busy for some tenths of a second.
const READERS: usize = 2;

/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// The room of a worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    bytes: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(ALL)),
            readers: Arc::new(Semaphore::new(READERS)),
        }
    }
}

/// An attempt's part of it.
pub(super) struct Share {
    room: Room,
    own: Semaphore,
}

/// A request's part of that, for as long as it is held.
pub(super) type Taken<'s> = (SemaphorePermit<'s>, SemaphorePermit<'s>);

impl Share {
    pub(super) fn of(room: Room) -> Self {
        Self {
            room,
            own: Semaphore::new(OWN),
        }
    }

    /// Room for a request of at most so many bytes; none is needed for a short one.
    ///
    /// # Errors
    /// When there is none for too long.
    pub(super) async fn take(&self, bytes: usize) -> Result<Option<Taken<'_>>, Refusal> {
        if bytes <= SHORT {
            return Ok(None);
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let taken = async {
            // Its own first: who waits for that keeps nothing from others.
            let own = self.own.acquire_many(bytes).await.ok()?;
            Some((own, self.room.bytes.acquire_many(bytes).await.ok()?))
        };
        let taken = timeout(PATIENCE, taken).await.ok().flatten();
        taken.map(Some).ok_or_else(|| Refusal {
            may_retry: true,
            retry_after_s: Some(1),
            ..Refusal::new(429, "rate_limit_error", "too many long requests at once")
        })
    }

    /// Looks at a long request, where nobody else has to wait for it.
    ///
    /// # Errors
    /// When that failed by itself.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _reader = self.room.readers.acquire().await;
        let failed = |_panicked| Refusal::new(500, "api_error", "the request could not be looked at");
        spawn_blocking(look).await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn long_requests_wait_for_each_other_and_short_ones_for_nobody() {
        let room = Room::default();
        let attempts: Vec<Share> = (0..=ALL / OWN).map(|_| Share::of(room.clone())).collect();
        let (last, others) = attempts.split_last().unwrap();
        let mut taken = Vec::new();
        for attempt in others {
            taken.push(attempt.take(OWN).await.unwrap());
            assert!(attempt.take(SHORT + 1).now_or_never().is_none(), "its part is used up");
            assert!(attempt.take(SHORT).now_or_never().unwrap().is_ok());
        }
        assert!(last.take(SHORT + 1).now_or_never().is_none(), "the worker has no more");
        assert!(last.take(SHORT).now_or_never().unwrap().is_ok());
        drop(taken.pop());
        assert!(last.take(OWN).now_or_never().unwrap().is_ok());
    }
}
