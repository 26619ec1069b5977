//! The task that writes what calls used, while the turn goes on.

use common::job::Job;
use common::store::Store;
use common::store::usage::Call;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

/// What waits to be written; more makes nobody wait, and is written by nobody.
const WAITING_MAX: usize = 16_384;

/// Tries before a call's usage is given up, while Postgres is away.
const TRIES: u32 = 20;

#[derive(Debug)]
enum Order {
    Write(Box<Call>),
    Release(Uuid),
    Flush(oneshot::Sender<()>),
}

/// The task's handle. Dropping it lets the task write what it has and end.
#[derive(Debug)]
pub(super) struct Writer {
    sender: mpsc::Sender<Order>,
    _task: Detached,
}

/// A task that goes on until it has written everything, also after its owner is gone.
#[derive(Debug)]
struct Detached(JoinSet<()>);

impl Drop for Detached {
    fn drop(&mut self) {
        // Facts are kept whatever becomes of the attempt; the task ends by itself when its channel is empty.
        self.0.detach_all();
    }
}

impl Writer {
    pub(super) fn start(store: Store, job: Job) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut task = JoinSet::new();
        task.spawn(run(store, job, receiver));
        Self {
            sender,
            _task: Detached(task),
        }
    }

    pub(super) fn write(&self, call: Call) {
        self.order(Order::Write(Box::new(call)));
    }

    pub(super) fn release(&self, hold: Uuid) {
        self.order(Order::Release(hold));
    }

    fn order(&self, order: Order) {
        if let Err(error) = self.sender.try_send(order) {
            metrics::counter!("hothouse_model_usage_lost_total").increment(1);
            tracing::error!(%error, "usage is lost: too much waits for Postgres");
        }
    }

    /// Waits until everything that was ordered before is written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.sender.send(Order::Flush(done)).await.is_ok() {
            // The task is gone when its runtime is: then there is nothing to wait for.
            drop(written.await);
        }
    }
}

async fn run(store: Store, job: Job, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Write(call) => write(&store, &job, &call).await,
            Order::Release(hold) => {
                if let Err(error) = store.release_budget(hold).await {
                    tracing::debug!(%error, job_id = %job.id, "a hold ends by its time");
                }
            }
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

async fn write(store: &Store, job: &Job, call: &Call) {
    for tried in 1..=TRIES {
        match store.insert_usage(job, call).await {
            Ok(()) => return,
            Err(error) if tried == TRIES => {
                metrics::counter!("hothouse_model_usage_lost_total").increment(1);
                tracing::error!(%error, job_id = %job.id, ?call, "usage is lost");
            }
            Err(error) => {
                tracing::warn!(%error, job_id = %job.id, "usage waits for Postgres");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}
