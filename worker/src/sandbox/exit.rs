//! How a program ended.

use std::time::Duration;

use hothouse_protocol::{FullMount, Oom, StreamTotals};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "several may be true at once, and who settles a job weighs them"
)]
pub struct Exit {
    /// The exit code, when it exited.
    pub code: Option<i32>,
    /// The signal, when one killed it.
    pub signal: Option<i32>,
    /// Its time was over.
    pub timed_out: bool,
    /// It wrote more than [`super::RunSpec::kill_bytes`].
    pub output_limit: bool,
    /// It was killed on request.
    pub killed: bool,
    /// Whether the kernel killed one of its processes for memory.
    pub oom: Oom,
    /// Whether a writable mount had no room left when it ended.
    pub disk_full: bool,
    /// Which ones.
    pub full_mounts: Vec<FullMount>,
    /// Processor time of all its processes.
    pub cpu: Duration,
    /// The most memory that it used, in bytes.
    pub memory_peak_bytes: u64,
    /// From the start of the process to its end.
    pub wall: Duration,
    /// Its standard output.
    pub stdout: StreamSummary,
    /// Its standard error.
    pub stderr: StreamSummary,
}

impl Exit {
    /// Whether it exited with 0.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

/// What became of an output stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamSummary {
    /// Bytes that the program wrote.
    pub bytes: u64,
    /// Bytes that were dropped between head and tail.
    pub dropped: u64,
}

impl StreamSummary {
    /// Whether anything was dropped.
    pub const fn is_truncated(&self) -> bool {
        self.dropped > 0
    }
}

impl From<hothouse_protocol::Exit> for Exit {
    fn from(exit: hothouse_protocol::Exit) -> Self {
        let summary = |totals: StreamTotals| StreamSummary {
            bytes: totals.bytes,
            dropped: totals.dropped,
        };
        Self {
            code: exit.code,
            signal: exit.signal,
            timed_out: exit.timed_out,
            output_limit: exit.output_limit,
            killed: exit.killed,
            oom: exit.oom,
            disk_full: !exit.full_mounts.is_empty(),
            full_mounts: exit.full_mounts,
            cpu: Duration::from_micros(exit.cpu_us),
            memory_peak_bytes: exit.memory_peak_bytes,
            wall: Duration::from_micros(exit.wall_us),
            stdout: summary(exit.stdout),
            stderr: summary(exit.stderr),
        }
    }
}
