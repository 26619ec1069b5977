//! What a program is asked for with.

use std::time::Duration;

use bytes::Bytes;
use hothouse_protocol::{Exec, Program, Rlimits, Run, TerminalSize, TextFile};

use super::WORKSPACE;

/// A program to start.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// The program, looked up in the `PATH` of `env` when it has no slash, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Small files, written below the workspace before it starts. Together with everything else here they have room
    /// for [`PAYLOAD_MAX`](hothouse_protocol::PAYLOAD_MAX) bytes of JSON.
    pub files: Vec<TextFile>,
    /// Where it starts.
    pub cwd: String,
    /// What it reads.
    pub stdin: Input,
    /// From the start of the process to SIGTERM; none is no limit but the sandbox's own.
    pub timeout: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Bytes of each output stream that are kept: half as its head, which comes live, half as its tail, which comes at
    /// the end. None keeps everything.
    pub keep_bytes: Option<u64>,
    /// Bytes of both output streams together after which the program is killed; none is no limit.
    pub kill_bytes: Option<u64>,
    /// Limits of each process.
    pub rlimits: Rlimits,
    /// A terminal of this size instead of pipes; its output is all standard output.
    pub terminal: Option<TerminalSize>,
}

/// What a program reads.
#[derive(Debug, Clone, Default)]
pub enum Input {
    /// Nothing: the end at once.
    #[default]
    None,
    /// These bytes, then the end.
    Bytes(Bytes),
    /// What [`super::Stdin::write`] sends, until [`super::Stdin::close`].
    Stream,
}

impl RunSpec {
    /// A program with the usual limits: 60 s, 1 MiB kept of each stream, 64 MiB in all.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            files: Vec::new(),
            cwd: WORKSPACE.to_owned(),
            stdin: Input::None,
            timeout: Some(Duration::from_mins(1)),
            grace: Duration::from_secs(2),
            keep_bytes: Some(1 << 20),
            kill_bytes: Some(64 << 20),
            rlimits: Rlimits::default(),
            terminal: None,
        }
    }

    /// The request, and what to feed it with.
    pub(super) fn into_wire(self) -> (Run, Input) {
        let head_bytes = self.keep_bytes.map(|keep| keep / 2);
        let tail_bytes = self
            .keep_bytes
            .map_or(0, |keep| u32::try_from(keep - keep / 2).unwrap_or(u32::MAX));
        let exec = Exec {
            argv: self.argv,
            env: self.env,
            files: self.files,
            cwd: self.cwd,
            stdin: !matches!(self.stdin, Input::None),
            rlimits: self.rlimits,
            terminal: self.terminal,
        };
        let run = Run {
            program: Program::Exec(exec),
            timeout_ms: self.timeout.map(millis),
            grace_ms: millis(self.grace),
            head_bytes,
            tail_bytes,
            kill_bytes: self.kill_bytes,
        };
        (run, self.stdin)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
