//! The process of `bwrap` that stays outside of a sandbox, and what hangs on it.
//!
//! `bwrap` clones the first process of the sandbox and tells it a little later to go on. When the one outside is killed
//! between the two, the one inside waits for ever: nobody else holds the other end, and PID 1 of a namespace hears no
//! SIGTERM. The kernel's signal at a parent's death is asked for only after that moment, and follows a thread besides.
//! So whoever gives a start up stops the process outside, looks what it has made, and kills that first.

use std::fs;
use std::io;
use std::process::{ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::cgroup::Limited;

// A stop takes microseconds, unless the process waits for a processor or a disk.
const STOP_MAX: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_micros(100);

/// The process outside, and the cgroups of its sandbox. Dropping it before it has ended kills the sandbox, in whatever
/// state it is.
#[derive(Debug)]
pub(super) struct Outer(Option<Begun>);

impl Outer {
    /// Starts it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn spawn(command: &mut Command, limited: Option<Limited>) -> io::Result<Self> {
        let child = command.kill_on_drop(true).spawn()?;
        Ok(Self(Some(Begun {
            child,
            _limited: limited,
        })))
    }

    /// Its standard streams, as far as they are pipes and nobody has them yet.
    pub(super) fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        let child = self.child().ok()?;
        Some((child.stdin.take()?, child.stdout.take()?, child.stderr.take()?))
    }

    /// Waits until it has ended.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child()?.wait().await
    }

    /// Removes what is left of it, once it has ended.
    pub(super) async fn remove(mut self) {
        if let Some(begun) = self.0.take()
            && let Err(error) = spawn_blocking(move || drop(begun)).await
        {
            tracing::warn!(%error, "removing what is left of a sandbox ended badly");
        }
    }

    /// Waits until it has ended, with what it says on its standard error.
    pub(super) async fn output(mut self) -> io::Result<Output> {
        let child = self.child()?;
        let (mut said, stderr) = (Vec::new(), child.stderr.take());
        if let Some(mut stderr) = stderr {
            stderr.read_to_end(&mut said).await?;
        }
        Ok(Output {
            status: child.wait().await?,
            stdout: Vec::new(),
            stderr: said,
        })
    }

    fn child(&mut self) -> io::Result<&mut Child> {
        let begun = self.0.as_mut();
        begun
            .map(|begun| &mut begun.child)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        let Some(begun) = self.0.take() else { return };
        // The kernel takes as long as its processors are busy; a thread of the runtime must not wait for it. A runtime that
        // stops drops what it is given at once, which does the same.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(begun))),
            Err(_) => drop(begun),
        }
    }
}

/// What was begun. Dropping it may take a while: the process, with what it has made, comes first, and then the cgroups.
#[derive(Debug)]
struct Begun {
    child: Child,
    _limited: Option<Limited>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // None: it has ended and was waited for, so the number may be another's.
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if !stop(pid) {
            tracing::warn!(pid, "bwrap did not stop at once: what it has just made may be left");
        }
        for child in children(pid) {
            let killed = kill(Pid::from_raw(child), Signal::SIGKILL);
            tracing::debug!(pid, child, ?killed, "killing what a start that was given up had made");
        }
        let killed = self.child.start_kill();
        tracing::debug!(pid, ?killed, "killing bwrap");
    }
}

/// Stops a process; answers whether it makes no child any more.
fn stop(pid: i32) -> bool {
    if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_err() {
        return false;
    }
    let begun = Instant::now();
    while begun.elapsed() < STOP_MAX {
        match state(pid) {
            Some('T' | 't' | 'Z' | 'X') | None => return true,
            Some(_) => thread::sleep(LOOK_AGAIN),
        }
    }
    false
}

/// The letter of a process's state; none when there is no such process.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children(pid: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
