//! The protocol between a worker and the init of a sandbox.
//!
//! One connection, two byte streams (init's stdin and stdout), many things at once: programs with their input and
//! output, files, the lease, pings. Everything is a [`Frame`] with a ten-byte head, a secret and at most
//! [`PAYLOAD_MAX`] bytes; [`ToInit`] and [`FromInit`] are what frames mean. Nothing here does I/O, so that both ends
//! and the tests share every line.
//!
//! # A connection
//! The worker speaks first: [`ToInit::Hello`], which carries the secret. Init answers [`FromInit::Hello`]. From then on
//! the worker opens *streams* by numbers of its own choice, each used once: a [`Run`] is one stream from
//! [`ToInit::Run`] to [`FromInit::Exit`] or [`FromInit::Failed`]. The end of init's input, a frame that does not
//! decode, a wrong secret and an unknown kind all end the connection, and with it everything in the sandbox.
//!
//! # The secret
//! Each frame carries the [`Token`] of its connection. It protects against one thing: a program in the sandbox that
//! got hold of a descriptor of init's and writes frames to it blindly. Those frames are refused and end the sandbox. It
//! does not protect against somebody who can read the connection; that is the kernel's part (init cannot be read or
//! traced by a job, and a job runs under a uid of its own).
//!
//! # Tunnels
//! Init listens on the loopback ports of [`Greeting::listen`], and each connection of a program is a *tunnel*: a stream
//! that init opens ([`FromInit::Open`]), with a number that has [`TUNNEL_BIT`] and is used once. Init moves bytes and
//! knows nothing of what they say. Either end may end its own way ([`ToInit::Data`], [`FromInit::Data`] with `is_end`)
//! or the whole tunnel (`Close`); it is over when both ways have ended or one end has closed it, and what still comes
//! for it then is dropped. There are no tunnels without a run: when the last one ends init closes all of them, and a
//! connection that comes while none runs is closed without a word. At most [`TUNNELS_MAX`] are open at once; a
//! connection beyond that is closed too. An init of before tunnels names no ports in [`About::ports`] and opens none.
//!
//! # A reset
//! [`ToInit::Reset`] makes the sandbox as it was before its first program, or says why it is not. It is not done by a
//! [`Run`], of which each has processes of its own: a fork of init does it as the job, when all else is dead. An init of
//! before it does not say [`About::can_reset`], and ends the connection when it is asked.
//!
//! # Windows
//! Data frames ([`ToInit::Stdin`], [`FromInit::Output`], both `Data`) cost [`cost`] of their length and may be sent only
//! within the credit that the receiver gave for their stream and channel: [`WINDOW`] at first, [`TUNNEL_WINDOW`] each way
//! of a tunnel, more by `Credit` frames. All other
//! frames need none, so a flood of output never delays control. Each end holds the other to it: who sends more than its
//! credit ends the connection. One exception is deliberate: init reads a program's
//! output past its head without credit and keeps only the tail, because a program must never hang on a slow reader.

mod frame;
mod message;
mod run;
mod wire;

pub use frame::{Decoder, Error, Frame, HEAD_LEN, Kind, PAYLOAD_MAX, Token};
pub use message::{About, CgroupKind, Channel, Failure, FailureCode, FromInit, Greeting, ToInit};
pub use run::{
    Exec, Exit, FileEntry, FilesReport, FullMount, Oom, Pack, Program, Reset, Rested, Rlimits, Run, StreamTotals,
    TerminalSize, TextFile, Unpack,
};

/// The version of this protocol; both ends must name the same.
pub const VERSION: u32 = 3;

/// The credit of a stream's channel before the first `Credit` frame, in [`cost`]. A window divided by the time of a round
/// trip, which is 1 to 2 ms through an engine, bounds how fast files and output move.
pub const WINDOW: u32 = 1024 * 1024;

/// The loopback port at which programs find their way out.
pub const PROXY_PORT: u16 = 3128;

/// The loopback port at which programs find models.
pub const GATEWAY_PORT: u16 = 3129;

/// The bit that tells a stream of init's from one of the worker's.
pub const TUNNEL_BIT: u32 = 1 << 31;

/// The most tunnels of a sandbox at once.
pub const TUNNELS_MAX: usize = 64;

/// The credit of each way of a tunnel before the first `Credit` frame, in [`cost`].
pub const TUNNEL_WINDOW: u32 = 128 * 1024;

/// What a data frame costs beyond its payload, so that many tiny frames are bounded too.
pub const FRAME_COST: u32 = 64;

/// The most data frames that a full window can hold.
pub const WINDOW_FRAMES: usize = (WINDOW / FRAME_COST) as usize;

/// The credit that a data frame with `len` bytes of payload uses up.
pub fn cost(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
}
