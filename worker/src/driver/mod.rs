//! Drivers: what starts and destroys sandboxes.
//!
//! A driver starts an init in a sealed place and hands back the [`Pipe`] by which it is driven; everything above the
//! pipe is [`crate::sandbox`] and the same for all of them. A driver knows nothing about jobs: a [`Spec`] names an
//! image and a size, and all that belongs to a job arrives over the pipe when the sandbox is claimed.
//!
//! # Invariants
//! - Closing either half of the pipe ends the sandbox: init exits at the end of its input and everything goes with it.
//! - [`SandboxDriver::destroy`] is idempotent: a sandbox that is gone already is a success.
//! - Nothing about a sandbox is kept in the driver's memory alone: [`SandboxDriver::list`] finds those of a worker
//!   that died.

use std::fmt;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

pub mod bubblewrap;
pub mod docker;

/// Both directions of a sandbox's init: what it writes and what it reads.
pub struct Pipe {
    /// Frames from init.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// Frames to init; its end ends the sandbox.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}

/// A sandbox to start.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its name everywhere: in labels, in cgroups, in the log.
    pub id: Uuid,
    /// The worker that drives it, by which a reaper tells an orphan.
    pub worker_id: Uuid,
    /// The environment it belongs to.
    pub environment: String,
    /// The image to start; bubblewrap has none and uses the host's programs.
    pub image: String,
    /// What its name stood for when somebody looked: that is started, whatever the name stands for by now. With none, what it
    /// stands for.
    pub image_id: Option<String>,
    /// How large it is.
    pub profile: Profile,
}

/// How large a sandbox is. Part of what is warm, so a job that fits the profile never waits for a start.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Processors, in fractions.
    pub cpus: f64,
    /// Memory for processes, in bytes; a driver adds the sizes of the writable mounts, so that a full disk is no OOM.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub pids: u32,
    /// Open files per process.
    pub nofile: u64,
    /// Size of `/workspace`, in bytes.
    pub workspace_bytes: u64,
    /// Size of `/tmp`, in bytes.
    pub tmp_bytes: u64,
    /// Files, folders and links in each writable mount.
    pub inodes: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            cpus: 1.0,
            memory_bytes: 1 << 30,
            pids: 100,
            nofile: 4096,
            workspace_bytes: 512 << 20,
            tmp_bytes: 128 << 20,
            inodes: 128 << 10,
        }
    }
}

/// The time over which processors are shared out, in microseconds. In the kernel's own 100 ms a program of several threads, as
/// an interpreter that compiles beside itself, has used up one processor's share after half of the time and stands still
/// for the rest, just when it starts.
const CPU_PERIOD_US: u32 = 400_000;

impl Profile {
    /// The processor time of each [`CPU_PERIOD_US`], in microseconds; the kernel wants at least a millisecond.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "profiles have at most 1024 processors, and no less than none"
    )]
    fn cpu_quota_us(&self) -> u64 {
        ((self.cpus * f64::from(CPU_PERIOD_US)).round() as u64).max(1_000)
    }
}

/// A sandbox that exists, as [`SandboxDriver::list`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: Uuid,
    /// The worker that started it.
    pub worker_id: Uuid,
    /// When it was started.
    pub created_at: DateTime<Utc>,
}

/// Why a driver could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the driver needs does not answer: the engine is away, a program or a kernel feature is missing.
    #[error("the {driver} driver cannot work here: {reason}")]
    Unavailable {
        /// Which driver.
        driver: &'static str,
        /// What is missing and what to do about it.
        reason: String,
    },
    /// The image is not there and must be built first.
    #[error("there is no image {image:?}")]
    NoSuchImage {
        /// Its reference.
        image: String,
    },
    /// The machine has no room for another sandbox's files.
    #[error("sandbox {id} did not start, for want of room on the machine's disk: {reason}")]
    NoRoom {
        /// Which sandbox.
        id: Uuid,
        /// What the engine said.
        reason: String,
    },
    /// The sandbox did not start.
    #[error("sandbox {id} did not start: {reason}")]
    Start {
        /// Which sandbox.
        id: Uuid,
        /// What went wrong.
        reason: String,
    },
    /// The sandbox could not be removed and may still be there.
    #[error("sandbox {id} was not destroyed: {reason}")]
    Destroy {
        /// Which sandbox.
        id: Uuid,
        /// What went wrong.
        reason: String,
    },
    /// An operation of the operating system failed.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the same call may succeed later without anybody changing the configuration.
    pub const fn is_transient(&self) -> bool {
        !matches!(self, Self::NoSuchImage { .. })
    }
}

/// Starts, finds and destroys sandboxes of one kind.
pub trait SandboxDriver: Send + Sync + fmt::Debug {
    /// The driver's name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Starts a sandbox and hands back the pipe to its init. Cancel-safe: a future that is dropped leaves nothing
    /// behind that [`SandboxDriver::list`] does not find.
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, Error>>;

    /// Kills a sandbox and removes all that belongs to it; one that is gone is a success.
    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), Error>>;

    /// All sandboxes of this driver on this machine, those of dead workers too.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, Error>>;

    /// What the name of an image stands for now; none when there is no such image, or the driver has none.
    fn image_id<'a>(&'a self, _image: &'a str) -> BoxFuture<'a, Result<Option<String>, Error>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Whether what the sandboxes live by answers; a driver without an engine has nothing to ask.
    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether the driver can work here and now.
    fn check(&self) -> BoxFuture<'_, Result<(), Error>>;
}
