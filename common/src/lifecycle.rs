//! Starting and stopping a process: two tokens and a tracker.
//!
//! The *soft* token says: take nothing new, finish what you hold. The *hard* token says: drop what you hold. Every task is
//! spawned on the tracker under a name, and a task that ends with an error, or panics, stops the whole process softly:
//! a process that lost a part of itself is not healthy, and whoever supervises it starts another.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The stop signals and tasks of a process. Cheap to clone; clones are the same lifecycle.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    failed: Arc<AtomicBool>,
}

impl Lifecycle {
    /// A lifecycle that nothing has stopped yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process should take nothing new.
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled when what is still held is to be dropped.
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Asks for a soft stop.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Asks for a hard stop, which includes the soft one.
    pub fn stop_hard(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Runs `task` until it ends. An error or a panic stops the process softly and makes [`Self::has_failed`] true.
    pub fn spawn<E>(&self, name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: std::fmt::Display + Send + 'static,
    {
        let this = self.clone();
        self.tracker.spawn(async move {
            match std::panic::AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => tracing::debug!(task = name, "task ended"),
                Ok(Err(error)) => this.fail(name, &format!("{error:#}")),
                Err(_) => this.fail(name, "panic"),
            }
        });
    }

    /// Runs a task that cannot fail; a panic in it stops the process.
    pub fn spawn_infallible(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, task.map(Ok::<(), std::convert::Infallible>));
    }

    /// The tracker itself, for short tasks whose failure is somebody's answer and not the process's.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Waits for a soft stop, gives the tasks `drain` to end, then stops hard and waits at most `grace` more.
    /// Returns whether every task ended.
    pub async fn drained(&self, drain: Duration, grace: Duration) -> bool {
        self.soft.cancelled().await;
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => return true,
            () = self.hard.cancelled() => {}
            () = tokio::time::sleep(drain) => {}
        }
        self.hard.cancel();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }

    /// Whether a task, not a signal, began the stop.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Stops softly at the first SIGINT or SIGTERM and hard at the second.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn stop_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let this = self.clone();
        // Not on the tracker: it must outlive the drain, to hear the second signal.
        #[expect(clippy::disallowed_methods, reason = "the listener lives as long as the process")]
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if this.soft.is_cancelled() {
                    tracing::warn!("second signal: stopping at once");
                    this.stop_hard();
                } else {
                    tracing::info!("signal: draining");
                    this.stop();
                }
            }
        });
        Ok(())
    }

    fn fail(&self, name: &'static str, error: &str) {
        tracing::error!(task = name, error, "task failed: stopping the process");
        self.failed.store(true, Ordering::Relaxed);
        self.soft.cancel();
    }
}
