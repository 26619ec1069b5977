//! Waking duties before their pause is over: what is due soon is told by Postgres, what was fired by the duty that fires.

use std::sync::Arc;
use std::time::Duration;

use common::store::Store;
use common::store::wakes::Wake;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long to wait before listening is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Who may be woken. Cheap to clone; clones wake the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Wakes {
    /// A job will be due soon.
    pub(super) jobs: Arc<Notify>,
    /// A schedule will be due soon.
    pub(super) schedules: Arc<Notify>,
    /// A job has ended that may have open children.
    pub(super) orphans: Arc<Notify>,
    /// Schedules made jobs, whose outcomes will be wanted.
    pub(super) fired: Arc<Notify>,
}

impl Wakes {
    /// Passes on what Postgres tells until `stop`. While nothing can be heard the duties look by themselves.
    pub(super) async fn run(self, store: Store, stop: CancellationToken) {
        loop {
            let failed = tokio::select! {
                () = stop.cancelled() => return,
                failed = self.listen(&store) => failed,
            };
            tracing::debug!(error = %failed, "what becomes due is not heard of for a while");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn listen(&self, store: &Store) -> common::store::Error {
        let mut wakes = match store.wakes().await {
            Ok(wakes) => wakes,
            Err(error) => return error,
        };
        self.wake(Wake::Everything);
        loop {
            match wakes.next().await {
                Ok(wake) => self.wake(wake),
                Err(error) => return error,
            }
        }
    }

    fn wake(&self, wake: Wake) {
        let told = |of: Wake| wake == of || wake == Wake::Everything;
        for (of, duty) in [
            (Wake::Jobs, &self.jobs),
            (Wake::Schedules, &self.schedules),
            (Wake::Orphans, &self.orphans),
        ] {
            if told(of) {
                duty.notify_one();
            }
        }
    }
}
