//! What can go wrong between a worker and a sandbox.

use std::time::Duration;

use hothouse_protocol::{Failure, FailureCode};

/// A request of a sandbox that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The pipe ended: the sandbox, its engine or its machine is gone, and all that ran in it.
    #[error("the sandbox is gone")]
    Lost(#[source] Lost),
    /// Init did not answer in time.
    #[error("the sandbox did not answer a {to} within {after:?}")]
    NoAnswer {
        /// What was asked.
        to: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// Another version of init.
    #[error("the sandbox speaks version {theirs} of the protocol")]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The sandbox is not closed as it should be.
    #[error("the sandbox is not fit for use: {reason}")]
    Unfit {
        /// What is wrong.
        reason: &'static str,
    },
    /// The program could not be started.
    #[error("the sandbox refused: {}", .0.message)]
    Refused(Failure),
    /// Arguments and environment are too large; data belongs into files or input.
    #[error("arguments and environment of {bytes} bytes are too large")]
    TooLarge {
        /// How large they are, in bytes of the wire.
        bytes: usize,
    },
    /// Output was lost between the program and the worker.
    #[error("{received} of {sent} bytes of output arrived")]
    Incomplete {
        /// Bytes that init sent.
        sent: u64,
        /// Bytes that arrived.
        received: u64,
    },
    /// Files were not moved, or not all of them.
    #[error("moving files failed: {reason}")]
    Files {
        /// What the sandbox said; it may be shown to the job's owner.
        reason: String,
    },
}

impl Error {
    /// Whether the fault lies with the infrastructure, so that the same request may succeed in another sandbox.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Lost(_) | Self::NoAnswer { .. } | Self::Incomplete { .. } => true,
            Self::Refused(failure) => matches!(failure.code, FailureCode::Exhausted | FailureCode::Internal),
            Self::Version { .. } | Self::Unfit { .. } | Self::TooLarge { .. } | Self::Files { .. } => false,
        }
    }
}

/// Why a pipe ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Init or its engine closed it.
    #[error("the pipe was closed")]
    Closed,
    /// What came was not of this connection: forged by a program of the sandbox, or of a broken init.
    #[error("a frame was refused: {0}")]
    Refused(hothouse_protocol::Error),
    /// Init sent what it may not at that point.
    #[error("init broke the protocol: {0}")]
    Broken(&'static str),
    /// Init answers no more, although the pipe stands: it or its engine hangs.
    #[error("init did not answer for {0:?}")]
    Silent(Duration),
    /// Reading or writing failed.
    #[error("the pipe failed: {0}")]
    Failed(String),
}
