//! What frames mean, each way.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Exit, Rested, Run, TerminalSize};

/// The worker's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The protocol's version at the worker.
    pub version: u32,
    /// The user that programs run as; init's own where it may not change it.
    pub uid: u32,
    /// The group that programs run as.
    pub gid: u32,
    /// The folder that files are moved to and from.
    pub workspace: String,
    /// The loopback ports at which init listens for programs; each connection is a tunnel.
    #[serde(default)]
    pub listen: Vec<u16>,
}

/// Init's answer: who it is and what it found around itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is the answer to a question of its own"
)]
pub struct About {
    /// The protocol's version at init.
    pub version: u32,
    /// Init's own version.
    pub init_version: String,
    /// Whether it is PID 1, so that all processes end with it.
    pub is_pid1: bool,
    /// Whether programs run under another uid than init's.
    pub has_own_uid: bool,
    /// Whether nobody else may read or trace init.
    pub is_undumpable: bool,
    /// Whether no program can gain privileges.
    pub no_new_privs: bool,
    /// Whether init may kill every process of the sandbox.
    pub can_kill: bool,
    /// Whether the root cannot be written to.
    pub has_read_only_root: bool,
    /// What memory, CPU and OOM are read from.
    pub cgroup: CgroupKind,
    /// Where programs can write.
    pub writable_mounts: Vec<String>,
    /// The ports of [`Greeting::listen`] at which it does listen.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Whether it knows [`ToInit::Rest`]. An older one ends the connection at a kind that it does not know.
    #[serde(default)]
    pub can_rest: bool,
    /// Whether it knows [`ToInit::Reset`].
    #[serde(default)]
    pub can_reset: bool,
}

/// Which cgroup files init can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupKind {
    /// None: OOM kills cannot be told.
    None,
    /// The first version's.
    V1,
    /// The second version's.
    V2,
}

/// An output stream of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A request that could not be done; the stream is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people.
    pub message: String,
}

/// Why a request could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The program or its folder is not there.
    NotFound,
    /// The job may not execute the program or enter the folder.
    Denied,
    /// The request makes no sense.
    Invalid,
    /// The sandbox is out of processes, memory or descriptors.
    Exhausted,
    /// Not in this version.
    Unsupported,
    /// Init failed.
    Internal,
}

/// What the worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit {
    /// Opens the connection.
    Hello(Greeting),
    /// Starts a program.
    Run {
        /// The new stream.
        stream: u32,
        /// What to run.
        run: Box<Run>,
    },
    /// Input for a program, within its window.
    Stdin {
        /// The program's stream.
        stream: u32,
        /// The bytes.
        data: Bytes,
        /// Whether nothing follows.
        is_end: bool,
    },
    /// A signal for the program's process group.
    Signal {
        /// The program's stream.
        stream: u32,
        /// The signal's number.
        signal: i32,
    },
    /// Kills a program with all its descendants.
    Kill {
        /// The program's stream.
        stream: u32,
        /// Whether nobody reads the output any more, so that none is sent from now on.
        discard: bool,
    },
    /// A new size for the program's terminal.
    Resize {
        /// The program's stream.
        stream: u32,
        /// The size.
        size: TerminalSize,
    },
    /// More credit for an output stream.
    Credit {
        /// The program's stream.
        stream: u32,
        /// Which output.
        channel: Channel,
        /// How much more.
        credit: u32,
    },
    /// Everything is killed unless another lease comes within this time. There is no limit before the first.
    Lease {
        /// Milliseconds from now.
        run_on_ms: u64,
    },
    /// Asks for a [`FromInit::Pong`].
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// Kills everything but init; [`FromInit::Done`] follows when nothing is left.
    KillAll {
        /// Names the request.
        stream: u32,
    },
    /// Stops a program where it is (SIGSTOP) and kills everything else but init, its descendants among them;
    /// [`FromInit::Rested`] follows. SIGCONT wakes it.
    Rest {
        /// The program's stream.
        stream: u32,
    },
    /// Kills everything but init, deletes what programs left where they can write, and proves that nothing of them is left: no
    /// file, process, shared memory, queue or socket. [`FromInit::Done`] follows, or [`FromInit::Failed`] with what is left.
    /// No program can be started before that.
    Reset {
        /// Names the request.
        stream: u32,
    },
    /// Bytes for the program at the other end of a tunnel, within its window.
    Data {
        /// The tunnel's stream.
        stream: u32,
        /// The bytes.
        data: Bytes,
        /// Whether nothing follows this way.
        is_end: bool,
    },
    /// More credit for what comes out of a tunnel.
    TunnelCredit {
        /// The tunnel's stream.
        stream: u32,
        /// How much more.
        credit: u32,
    },
    /// A tunnel is over.
    Close {
        /// Its stream.
        stream: u32,
    },
}

/// What init says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromInit {
    /// The answer to the worker's hello.
    Hello(About),
    /// The program runs.
    Started {
        /// Its stream.
        stream: u32,
        /// Since when, in microseconds of `CLOCK_BOOTTIME`: the word of it may be late where the program uses the processor
        /// that would pass it on.
        at_us: u64,
    },
    /// What the program wrote, within the window.
    Output {
        /// Its stream.
        stream: u32,
        /// Which output.
        channel: Channel,
        /// The bytes.
        data: Bytes,
    },
    /// Here bytes were dropped; what follows on this channel is the tail.
    Cut {
        /// The program's stream.
        stream: u32,
        /// Which output.
        channel: Channel,
        /// How many bytes.
        dropped: u64,
    },
    /// The program ended; the last frame of its stream.
    Exit {
        /// Its stream.
        stream: u32,
        /// How it ended.
        exit: Box<Exit>,
    },
    /// The request of this stream could not be done; the last frame of it.
    Failed {
        /// Its stream.
        stream: u32,
        /// Why.
        failure: Failure,
    },
    /// More credit for a program's input, or for what goes into a tunnel.
    Credit {
        /// Its stream.
        stream: u32,
        /// How much more.
        credit: u32,
    },
    /// The answer to a ping.
    Pong {
        /// That of the ping.
        nonce: u64,
    },
    /// The request of this stream is done.
    Done {
        /// Its stream.
        stream: u32,
    },
    /// The program rests, and nothing else runs.
    Rested {
        /// Its stream.
        stream: u32,
        /// What was found.
        rested: Rested,
    },
    /// A program connected to a port of init's.
    Open {
        /// The tunnel's stream, which has [`crate::TUNNEL_BIT`].
        stream: u32,
        /// The port.
        port: u16,
    },
    /// Bytes from the program at the other end of a tunnel, within its window.
    Data {
        /// The tunnel's stream.
        stream: u32,
        /// The bytes.
        data: Bytes,
        /// Whether nothing follows this way.
        is_end: bool,
    },
    /// A tunnel is over.
    Close {
        /// Its stream.
        stream: u32,
    },
}
