//! Group commit without a timer: a batch is what arrived while the last one was under way.
//!
//! A lone caller pays no delay, and under load the cost of a commit is shared by everybody who came during the last.
//! Batches run where the batcher was made, whatever runtime its callers are on. A caller is woken by its answer, or by
//! room for its item, and while a batch is under way an item wakes nobody.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

/// Most turns of the scheduler that a batch waits for company.
const TURNS_MAX: u32 = 2;

/// Why a batch did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The batch panicked, or its runtime has ended.
    #[error("the batch did not answer")]
    Closed,
}

/// Collects the items of many callers into batches. Cheap to clone.
#[derive(Debug)]
pub struct Batcher<T, R> {
    shared: Arc<Shared<T, R>>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

/// How a batcher behaves.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most items in one batch.
    pub batch_max: usize,
    /// Most bytes in one batch; an item that is larger goes alone.
    pub bytes_max: usize,
    /// Most batches under way at once.
    pub parallel: usize,
    /// Items from which a batch is begun while another is under way; fewer wait for its end, and for company.
    pub company: usize,
    /// Items that may wait; more make callers wait.
    pub backlog: usize,
}

struct Shared<T, R> {
    limits: Limits,
    /// Bytes of an item.
    weigh: fn(&T) -> usize,
    process: Box<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync>,
    /// One for each item that may still come to wait.
    room: Semaphore,
    state: Mutex<State<T, R>>,
    tracker: TaskTracker,
    runtime: Handle,
}

struct State<T, R> {
    waiting: VecDeque<Waiting<T, R>>,
    under_way: usize,
}

struct Waiting<T, R> {
    item: T,
    bytes: usize,
    answer: oneshot::Sender<R>,
}

impl<T, R> fmt::Debug for Shared<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Hands batches to `process`, which answers one result for each item, in order, and runs on the runtime of whoever calls
    /// this. `weigh` answers the bytes of an item.
    pub fn new<F, Fut>(tracker: &TaskTracker, limits: Limits, weigh: fn(&T) -> usize, process: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
    {
        let shared = Shared {
            limits,
            weigh,
            process: Box::new(move |items| process(items).boxed()),
            room: Semaphore::new(limits.backlog),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                under_way: 0,
            }),
            tracker: tracker.clone(),
            runtime: Handle::current(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Hands in one item and waits for its result.
    ///
    /// # Errors
    /// [`Error::Closed`] when its batch panicked or ended with its runtime; the item may or may not have been processed.
    pub async fn call(&self, item: T) -> Result<R, Error> {
        let shared = &self.shared;
        shared.room.acquire().await.map_err(|_closed| Error::Closed)?.forget();
        let (answer, result) = oneshot::channel();
        if let Some(place) = Shared::push(shared, item, answer) {
            shared.tracker.spawn_on(run(place), &shared.runtime);
        }
        result.await.map_err(|_closed| Error::Closed)
    }
}

impl<T, R> State<T, R> {
    /// Whether there should be one more batch under way, and counts it.
    fn begin(&mut self, limits: &Limits) -> bool {
        let begins = match self.under_way {
            0 => !self.waiting.is_empty(),
            others => others < limits.parallel && self.waiting.len() >= limits.company,
        };
        self.under_way += usize::from(begins);
        begins
    }

    /// How many of those that wait the next batch takes.
    fn fitting(&self, limits: &Limits) -> usize {
        let mut bytes = 0_usize;
        let fit = self.waiting.iter().take(limits.batch_max).take_while(|waiting| {
            bytes = bytes.saturating_add(waiting.bytes);
            bytes <= limits.bytes_max
        });
        fit.count().max(1).min(self.waiting.len())
    }
}

impl<T, R> Shared<T, R> {
    /// Puts an item behind those that wait. The place of the batch that begins with it, if one does.
    fn push(this: &Arc<Self>, item: T, answer: oneshot::Sender<R>) -> Option<Place<T, R>> {
        let bytes = (this.weigh)(&item);
        let mut state = this.lock();
        state.waiting.push_back(Waiting { item, bytes, answer });
        state.begin(&this.limits).then(|| Place {
            shared: Arc::clone(this),
            is_held: true,
        })
    }

    fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a batch under way.
struct Place<T, R> {
    shared: Arc<Shared<T, R>>,
    is_held: bool,
}

impl<T, R> Place<T, R> {
    /// What waits, for the next batch in this place. Nothing where none should begin: then the place is given back.
    fn next(&mut self) -> Option<(Vec<T>, Vec<oneshot::Sender<R>>)> {
        let Shared { limits, room, .. } = &*self.shared;
        let mut state = self.shared.lock();
        state.under_way -= 1;
        self.is_held = state.begin(limits);
        if !self.is_held {
            return None;
        }
        let count = state.fitting(limits);
        room.add_permits(count);
        let taken = state.waiting.drain(..count);
        Some(taken.map(|waiting| (waiting.item, waiting.answer)).unzip())
    }
}

impl<T, R> Drop for Place<T, R> {
    /// A place that was not given back was dropped with its runtime. Nobody else may come to take what waits: it is not kept.
    fn drop(&mut self) {
        if !self.is_held {
            return;
        }
        let mut state = self.shared.lock();
        state.under_way -= 1;
        if state.under_way == 0 {
            let given_up = std::mem::take(&mut state.waiting);
            self.shared.room.add_permits(given_up.len());
        }
    }
}

/// One batch after the other, until nobody waits.
async fn run<T, R>(mut place: Place<T, R>) {
    loop {
        gather(&place.shared).await;
        let Some((items, answers)) = place.next() else { return };
        let process = std::panic::AssertUnwindSafe(async { (place.shared.process)(items).await });
        let Ok(results) = process.catch_unwind().await else {
            tracing::error!("a batch panicked");
            continue;
        };
        for (answer, result) in answers.into_iter().zip(results) {
            // A caller that has gone away does not need its answer.
            drop(answer.send(result));
        }
    }
}

/// Lets whoever is about to call run first, as long as that brings somebody: a turn of the scheduler costs microseconds,
/// a batch of its own a commit.
async fn gather<T, R>(shared: &Shared<T, R>) {
    for _ in 0..TURNS_MAX {
        let before = shared.waiting();
        tokio::task::yield_now().await;
        if shared.waiting() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One batch at a time, with room for everybody.
    const ALONE: Limits = Limits {
        batch_max: 100,
        bytes_max: 1_000,
        parallel: 1,
        company: 1,
        backlog: 100,
    };

    async fn called_or_not(batcher: Batcher<u32, u32>, item: u32) -> Result<u32, Error> {
        batcher.call(item).await
    }

    async fn called(batcher: Batcher<u32, u32>, item: u32) -> u32 {
        called_or_not(batcher, item).await.unwrap()
    }

    #[tokio::test]
    async fn what_arrives_during_a_batch_is_the_next_batch() {
        let tracker = TaskTracker::new();
        let gate = Arc::new(Semaphore::new(0));
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let (seen, held) = (Arc::clone(&sizes), Arc::clone(&gate));
        let batcher = Batcher::new(
            &tracker,
            ALONE,
            |_| 1,
            move |items: Vec<u32>| {
                let (seen, held) = (Arc::clone(&seen), Arc::clone(&held));
                async move {
                    seen.lock().unwrap().push(items.len());
                    held.acquire().await.unwrap().forget();
                    items.into_iter().map(|item| item * 2).collect()
                }
            },
        );
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
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let (seen, held) = (Arc::clone(&sizes), Arc::clone(&gate));
        let limits = Limits {
            parallel: 2,
            company: 5,
            ..ALONE
        };
        let batcher = Batcher::new(
            &tracker,
            limits,
            |_| 1,
            move |items: Vec<u32>| {
                let (seen, held) = (Arc::clone(&seen), Arc::clone(&held));
                async move {
                    seen.lock().unwrap().push(items.len());
                    held.acquire().await.unwrap().forget();
                    items
                }
            },
        );
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

    #[tokio::test]
    async fn a_batch_ends_before_the_item_that_is_too_much_for_it() {
        let tracker = TaskTracker::new();
        let (gate, taken) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (held, seen) = (Arc::clone(&gate), Arc::clone(&taken));
        let bytes = |item: &u32| *item as usize;
        let batcher = Batcher::new(&tracker, ALONE, bytes, move |items: Vec<u32>| {
            let (held, seen) = (Arc::clone(&held), Arc::clone(&seen));
            async move {
                seen.lock().unwrap().push(items.clone());
                held.acquire().await.unwrap().forget();
                items
            }
        });
        let first = tracker.spawn(called(batcher.clone(), 1));
        while taken.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let later = [400, 600, 1, 5_000, 2, 3].map(|item| called(batcher.clone(), item));
        let later = futures_util::future::join_all(later);
        gate.add_permits(10);
        assert_eq!(later.await, [400, 600, 1, 5_000, 2, 3]);
        assert_eq!(first.await.unwrap(), 1);
        let expected: [&[u32]; 5] = [&[1], &[400, 600], &[1], &[5_000], &[2, 3]];
        assert_eq!(*taken.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_batch_that_panics_answers_its_callers_and_no_others() {
        let tracker = TaskTracker::new();
        let limits = Limits {
            batch_max: 1,
            backlog: 1,
            ..ALONE
        };
        let batcher = Batcher::new(
            &tracker,
            limits,
            |_| 1,
            move |items: Vec<u32>| {
                assert_ne!(items, [2], "this is the one that panics");
                async move { items }
            },
        );
        let calls = (1..=3).map(|item| batcher.call(item));
        let answers = futures_util::future::join_all(calls).await;
        assert_eq!(answers, [Ok(1), Err(Error::Closed), Ok(3)]);
        tracker.close();
        tracker.wait().await;
    }

    #[tokio::test]
    async fn callers_wait_for_room() {
        let tracker = TaskTracker::new();
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let limits = Limits {
            batch_max: 2,
            backlog: 2,
            ..ALONE
        };
        let batcher = Batcher::new(
            &tracker,
            limits,
            |_| 1,
            move |items: Vec<u32>| {
                let held = Arc::clone(&held);
                async move {
                    held.acquire().await.unwrap().forget();
                    items
                }
            },
        );
        let calls: Vec<_> = (0..10)
            .map(|item| tracker.spawn(called(batcher.clone(), item)))
            .collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(batcher.shared.waiting(), 2);
        gate.add_permits(10);
        for (item, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap() as usize, item);
        }
    }

    #[test]
    fn batches_run_where_the_batcher_was_made() {
        let runtime = |name: &str| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name(name)
                .build()
                .unwrap()
        };
        let (here, elsewhere) = (runtime("here"), runtime("elsewhere"));
        let limits = Limits {
            batch_max: 10,
            backlog: 10,
            ..ALONE
        };
        let thread = || std::thread::current().name().map(str::to_owned);
        let batcher = here.block_on(async {
            Batcher::new(
                &TaskTracker::new(),
                limits,
                |()| 1,
                move |items: Vec<()>| async move { items.into_iter().map(|()| thread()).collect() },
            )
        });
        let called = elsewhere.spawn(async move { batcher.call(()).await });
        let answer = elsewhere.block_on(called).unwrap();
        assert_eq!(answer, Ok(Some("here".to_owned())));
    }

    #[test]
    fn nobody_waits_for_a_runtime_that_has_ended() {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .build()
                .unwrap()
        };
        let (ended, callers) = (runtime(), runtime());
        let limits = Limits {
            batch_max: 1,
            backlog: 1,
            ..ALONE
        };
        let batcher = ended
            .block_on(async { Batcher::new(&TaskTracker::new(), limits, |_| 1, |_: Vec<u32>| std::future::pending()) });
        let calls: Vec<_> = (0..3)
            .map(|item| callers.spawn(called_or_not(batcher.clone(), item)))
            .collect();
        // One is under way, one waits, and one has no room.
        while batcher.shared.lock().under_way == 0 || batcher.shared.waiting() == 0 {
            std::thread::yield_now();
        }
        drop(ended);
        let later = callers.spawn(called_or_not(batcher, 3));
        for call in calls.into_iter().chain([later]) {
            assert_eq!(callers.block_on(call).unwrap(), Err(Error::Closed));
        }
    }
}
