//! One private server: started by this process, or taken over from an `up` that was killed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::process;

/// A log that has grown beyond this is begun anew at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// What the program is, and where it works.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The name of its process.
    pub(crate) name: &'static str,
    /// What people call it.
    pub(crate) title: &'static str,
    /// The folder that it works in, which is how a process is known to be ours.
    pub(crate) folder: PathBuf,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// The signal that ends it in order, its clients' connections included.
    pub(crate) stop_signal: Signal,
}

/// A server that runs. Dropping it leaves it running; the next start takes it over.
#[derive(Debug)]
pub(crate) struct Server {
    program: Program,
    pid: i32,
    child: Option<Child>,
}

impl Program {
    /// The server whose pid is in `pid_file`, when it is alive and ours.
    pub(crate) fn left_over(&self, pid_file: &Path) -> Option<Server> {
        let pid = process::read_pid(pid_file)?;
        process::is_ours(pid, self.name, &self.folder).then(|| Server {
            program: self.clone(),
            pid,
            child: None,
        })
    }

    /// Starts `command` and waits until `is_ready` says so.
    ///
    /// # Errors
    /// The end of its log when it ended instead; a sentence when it does not become ready within `limit`.
    pub(crate) async fn start(
        &self,
        mut command: Command,
        limit: Duration,
        is_ready: impl Fn() -> BoxFuture<'static, bool> + Send,
    ) -> anyhow::Result<Server> {
        let log = self.open_log()?;
        let mut child = command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("cannot start {}", self.title))?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("a process without a pid")?;
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended at once ({status}): {}", self.title, self.last_words());
            }
            if is_ready().await {
                return Ok(Server {
                    program: self.clone(),
                    pid,
                    child: Some(child),
                });
            }
            if tokio::time::Instant::now() >= deadline {
                process::end(pid, self.name, &self.folder, self.stop_signal, Duration::from_secs(5)).await;
                bail!(
                    "{} does not answer after {} s; see {}",
                    self.title,
                    limit.as_secs(),
                    self.log.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of the log, for a sentence.
    pub(crate) fn last_words(&self) -> String {
        format!(
            "{} (the log is {})",
            process::last_lines(&self.log, 3),
            self.log.display()
        )
    }

    fn open_log(&self) -> anyhow::Result<File> {
        let is_long = self.log.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX);
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600);
        let options = if is_long {
            options.write(true).truncate(true)
        } else {
            options.append(true)
        };
        options
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))
    }
}

impl Server {
    /// Whether its process lives.
    pub(crate) fn is_alive(&mut self) -> bool {
        // Asking the child reaps it.
        let has_ended = self
            .child
            .as_mut()
            .is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
        !has_ended && process::is_ours(self.pid, self.program.name, &self.program.folder)
    }

    /// Ends it in order, by force after `grace`. Returns whether force was not needed.
    pub(crate) async fn stop(mut self, grace: Duration) -> bool {
        let Program {
            name,
            folder,
            stop_signal,
            ..
        } = &self.program;
        let in_order = process::end(self.pid, name, folder, *stop_signal, grace).await;
        if let Some(child) = &mut self.child {
            // Reaps it; how it ended does not matter any more.
            drop(child.wait().await);
        }
        in_order
    }
}
