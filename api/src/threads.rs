//! Threads that serve connections and do nothing else.
//!
//! There is one for each two processors: Postgres and Redis need processors too, and a few threads that seldom wait for work
//! accept more than as many as there are processors, which take it from each other. What is asked of Postgres for many
//! callers at once is asked on the process's own threads, beside these.

use std::future::Future;
use std::io;
use std::num::NonZero;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// The threads; dropping them drops what runs there.
#[derive(Debug)]
pub(crate) struct Threads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Threads {
    /// Starts them.
    ///
    /// # Errors
    /// When the system has no room for a thread.
    pub(crate) fn start() -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads(processors.div_ceil(2))
            .thread_name("http")
            .enable_all()
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs a task there.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Async code must not wait for threads to end.
            runtime.shutdown_background();
        }
    }
}
