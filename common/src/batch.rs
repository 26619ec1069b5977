//! Group commit without a timer: a batch is what arrived while the last one was under way.
//!
//! A lone caller pays no delay, and under load the cost of a commit is shared by everybody who came during the last.

use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// Most turns of the scheduler that a batch waits for company.
const TURNS_MAX: u32 = 2;

/// Why a batch did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The process is stopping, or the batch panicked.
    #[error("the batch did not answer")]
    Closed,
}

/// The sending side of a batching loop. Cheap to clone; the loop ends when the last clone is gone.
#[derive(Debug)]
pub struct Batcher<T, R> {
    sender: mpsc::Sender<(T, oneshot::Sender<R>)>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
        }
    }
}

/// How a batching loop behaves.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most items in one batch.
    pub batch_max: usize,
    /// Most batches under way at once.
    pub parallel: usize,
    /// Items from which a batch is begun while another is under way; fewer wait for its end, and for company.
    pub company: usize,
    /// Items that may wait; more make callers wait.
    pub backlog: usize,
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts a loop that hands batches to `process`, which answers one result for each item, in order.
    pub fn spawn<F, Fut>(tracker: &TaskTracker, limits: Limits, process: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(limits.backlog);
        tracker.spawn(collect(tracker.clone(), limits, receiver, Arc::new(process)));
        Self { sender }
    }

    /// Hands in one item and waits for its result.
    ///
    /// # Errors
    /// [`Error::Closed`] when the loop has ended; the item may or may not have been processed.
    pub async fn call(&self, item: T) -> Result<R, Error> {
        let (answer, result) = oneshot::channel();
        self.sender
            .send((item, answer))
            .await
            .map_err(|_closed| Error::Closed)?;
        result.await.map_err(|_closed| Error::Closed)
    }
}

/// Hands over whatever has arrived, one batch for each free place.
async fn collect<T, R, F, Fut>(
    tracker: TaskTracker,
    limits: Limits,
    mut receiver: mpsc::Receiver<(T, oneshot::Sender<R>)>,
    process: Arc<F>,
) where
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<R>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limits.parallel));
    let ended = Arc::new(Notify::new());
    let mut arrived = Vec::with_capacity(limits.batch_max);
    loop {
        // The place is taken first: what comes while no place is free joins the next batch.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        if receiver.recv_many(&mut arrived, limits.batch_max).await == 0 {
            return;
        }
        gather(&mut receiver, &mut arrived, limits.batch_max).await;
        while arrived.len() < limits.company && places.available_permits() + 1 < limits.parallel {
            let room = limits.company - arrived.len();
            // Both are cancel-safe: what was not received stays in the channel.
            tokio::select! {
                () = ended.notified() => {}
                more = receiver.recv_many(&mut arrived, room) => if more == 0 { break },
            }
        }
        let (items, answers): (Vec<T>, Vec<oneshot::Sender<R>>) = arrived.drain(..).unzip();
        let (process, ended) = (Arc::clone(&process), Arc::clone(&ended));
        tracker.spawn(async move {
            let Ok(results) = std::panic::AssertUnwindSafe(process(items)).catch_unwind().await else {
                tracing::error!("a batch panicked");
                drop(place);
                return ended.notify_one();
            };
            // The next batch begins before these answers are acted on.
            drop(place);
            ended.notify_one();
            for (answer, result) in answers.into_iter().zip(results) {
                // A caller that has gone away does not need its answer.
                drop(answer.send(result));
            }
        });
    }
}

/// Lets whoever is about to call run first, as long as that brings somebody: a turn of the scheduler costs microseconds,
/// a batch of its own a commit.
async fn gather<T>(receiver: &mut mpsc::Receiver<T>, arrived: &mut Vec<T>, batch_max: usize) {
    for _ in 0..TURNS_MAX {
        let before = arrived.len();
        tokio::task::yield_now().await;
        while arrived.len() < batch_max {
            let Ok(item) = receiver.try_recv() else { break };
            arrived.push(item);
        }
        if arrived.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn called(batcher: Batcher<u32, u32>, item: u32) -> u32 {
        batcher.call(item).await.unwrap()
    }

    #[tokio::test]
    async fn what_arrives_during_a_batch_is_the_next_batch() {
        let tracker = TaskTracker::new();
        let gate = Arc::new(Semaphore::new(0));
        let sizes = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (seen, held) = (Arc::clone(&sizes), Arc::clone(&gate));
        let limits = Limits {
            batch_max: 100,
            parallel: 1,
            company: 1,
            backlog: 100,
        };
        let batcher = Batcher::spawn(&tracker, limits, move |items: Vec<u32>| {
            let (seen, held) = (Arc::clone(&seen), Arc::clone(&held));
            async move {
                seen.lock().unwrap().push(items.len());
                held.acquire().await.unwrap().forget();
                items.into_iter().map(|item| item * 2).collect()
            }
        });
        let calls: Vec<_> = (0..10)
            .map(|item| {
                let batcher = batcher.clone();
                tracker.spawn(async move { batcher.call(item).await.unwrap() })
            })
            .collect();
        while sizes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        gate.add_permits(10);
        for (item, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap() as usize, item * 2);
        }
        assert!(sizes.lock().unwrap().len() < 10, "{sizes:?}");
        assert_eq!(sizes.lock().unwrap().iter().sum::<usize>(), 10);
    }

    #[tokio::test]
    async fn a_second_batch_waits_for_company_or_for_the_end_of_the_first() {
        let tracker = TaskTracker::new();
        let gate = Arc::new(Semaphore::new(0));
        let sizes = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (seen, held) = (Arc::clone(&sizes), Arc::clone(&gate));
        let limits = Limits {
            batch_max: 100,
            parallel: 2,
            company: 5,
            backlog: 100,
        };
        let batcher = Batcher::spawn(&tracker, limits, move |items: Vec<u32>| {
            let (seen, held) = (Arc::clone(&seen), Arc::clone(&held));
            async move {
                seen.lock().unwrap().push(items.len());
                held.acquire().await.unwrap().forget();
                items
            }
        });
        let call = |count: u32| {
            (0..count).for_each(|item| drop(tracker.spawn(called(batcher.clone(), item))));
        };
        let begun = async |batches: usize| {
            while sizes.lock().unwrap().len() < batches {
                tokio::task::yield_now().await;
            }
        };
        call(1);
        begun(1).await;
        call(4);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*sizes.lock().unwrap(), [1], "four are too few beside another");
        call(1);
        begun(2).await;
        assert_eq!(*sizes.lock().unwrap(), [1, 5]);
        gate.add_permits(2);
        call(1);
        begun(3).await;
        assert_eq!(*sizes.lock().unwrap(), [1, 5, 1], "alone it waits for nobody");
    }
}
