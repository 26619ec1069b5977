//! What a stream runs and how it ended.

use serde::{Deserialize, Serialize};

/// Something to run on a stream of its own, under limits of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What runs.
    pub program: Program,
    /// From the start of the process to SIGTERM, in milliseconds; none is no limit but the sandbox's own.
    pub timeout_ms: Option<u64>,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// Bytes of each output stream that are sent as they come; none sends everything.
    pub head_bytes: Option<u64>,
    /// Bytes of each output stream after the head that are kept, the last ones, and sent when the program has ended.
    pub tail_bytes: u32,
    /// Bytes of both output streams together after which the program is killed; none is no limit.
    pub kill_bytes: Option<u64>,
}

/// What runs on a stream. All of it runs as the job, never as init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A program of the sandbox.
    Exec(Exec),
    /// Unpacks the tar stream that comes as input; its standard error is a [`FilesReport`].
    Unpack(Unpack),
    /// Packs files as a tar stream to its standard output; its standard error is a [`FilesReport`].
    Pack(Pack),
    /// What workers asked for before there was [`crate::ToInit::Reset`]: deletes what jobs left, when no program runs any
    /// more; its standard error is a [`FilesReport`].
    Reset(Reset),
}

/// A program of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program, looked up in the `PATH` of `env` when it has no slash, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Small files that are written into the workspace before it starts, as the job: what saves a short program the
    /// round trip of an [`Unpack`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<TextFile>,
    /// Where it starts.
    pub cwd: String,
    /// Whether input will come; otherwise it reads the end at once.
    pub stdin: bool,
    /// Limits of each process.
    pub rlimits: Rlimits,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
}

/// A small file of text, executable, so that it can be the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextFile {
    /// Relative to the workspace; folders on the way are made. What is there is replaced, never written through.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Limits of each process; none leaves the sandbox's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimits {
    /// Open files.
    pub nofile: Option<u64>,
    /// The largest file that it may write, in bytes.
    pub fsize_bytes: Option<u64>,
    /// Processor time, in seconds.
    pub cpu_seconds: Option<u64>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// Unpacks a tar stream below the workspace. Refused whole at the first entry that is absolute, climbs out with `..`,
/// would be written through a link, or is a device, fifo or socket; setuid and setgid bits are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// The folder below the workspace, relative, made when it is not there; empty is the workspace itself.
    pub dest: String,
    /// The most entries.
    pub entries_max: u64,
    /// The most bytes of all files together.
    pub bytes_max: u64,
    /// Whether symbolic links may point out of the folder, as those of a saved workspace do. They are never followed
    /// while unpacking either way.
    pub outside_links: bool,
}

/// Packs what matches as a tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// The folder below the workspace, relative; empty is the workspace itself. Paths in the archive begin below it.
    pub root: String,
    /// What to take, as globs relative to the root: `*` stays in a folder, `**` does not.
    pub globs: Vec<String>,
    /// Whether folders and symbolic links are packed too, as themselves; otherwise regular files only.
    pub whole_tree: bool,
    /// The most entries.
    pub entries_max: u64,
    /// The most bytes of all files together.
    pub bytes_max: u64,
}

/// Deletes everything in some folders, and proves that nothing of a job is left in the sandbox: no file, process, shared
/// memory, queue or socket. Refused when something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reset {
    /// Absolute; those that are not there are left out.
    pub folders: Vec<String>,
}

/// What [`Program::Unpack`], [`Program::Pack`] or [`Program::Reset`] did. It comes from a process of the sandbox: trust
/// nothing in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesReport {
    /// How many entries were written or read.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Each packed file, in the archive's order; empty for a whole tree, and when unpacking.
    pub files: Vec<FileEntry>,
    /// Whether a cap was reached, so that something that matched is not in the archive.
    pub incomplete: bool,
    /// Why it stopped early, for a person.
    pub error: Option<String>,
}

/// A packed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the root.
    pub path: String,
    /// In bytes.
    pub size: u64,
}

/// How a run ended. It is sent when the program and all its descendants are gone and all their output was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, when it exited.
    pub code: Option<i32>,
    /// The signal, when one killed it.
    pub signal: Option<i32>,
    /// Its time was over.
    pub timed_out: bool,
    /// It wrote more than `kill_bytes`.
    pub output_limit: bool,
    /// The worker asked to kill it.
    pub killed: bool,
    /// Whether the kernel killed one of its processes for memory.
    pub oom: Oom,
    /// Processor time of all its processes, in microseconds.
    pub cpu_us: u64,
    /// The most memory that it used, in bytes: the sandbox's peak when this run raised it, otherwise the largest of its
    /// processes.
    pub memory_peak_bytes: u64,
    /// From the start of the process to its end, in microseconds.
    pub wall_us: u64,
    /// Writable mounts that were full when it ended.
    pub full_mounts: Vec<FullMount>,
    /// Its standard output.
    pub stdout: StreamTotals,
    /// Its standard error.
    pub stderr: StreamTotals,
}

/// What was found when a program was let to rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rested {
    /// Whether it lives; the exit of one that has ended comes as always.
    pub is_alive: bool,
    /// How many other processes were killed.
    pub others: u32,
    /// Processor time of the whole sandbox since the program was started or rested last, in microseconds; 0 where it
    /// is not counted.
    pub cpu_us: u64,
    /// The most memory that the sandbox ever used, in bytes; 0 where it is not counted.
    pub memory_peak_bytes: u64,
}

/// Whether the kernel killed a process of the run for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oom {
    /// No.
    No,
    /// Yes.
    Yes,
    /// It cannot be told: there is no cgroup to read, or several runs shared the sandbox.
    Unknown,
}

/// A writable mount without room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullMount {
    /// Where it is.
    pub path: String,
    /// Out of bytes.
    pub blocks: bool,
    /// Out of files.
    pub inodes: bool,
}

/// What became of an output stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTotals {
    /// Bytes that the program wrote.
    pub bytes: u64,
    /// Bytes that were sent to the worker: a check that nothing was lost on the way.
    pub sent: u64,
    /// Bytes that were dropped between head and tail.
    pub dropped: u64,
}
