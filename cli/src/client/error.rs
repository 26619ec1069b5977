//! What can go wrong in a call, each as one sentence that says what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

use super::problem::Problem;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("this measures plain HTTP only, and {0} is not")]
    NotPlain(String),
    #[error("no server answers at {0}: start one here with `hothouse up`, or name another with --server")]
    Unreachable(String),
    #[error("`{0}` is not the address of a server: it looks like http://127.0.0.1:8080")]
    BadServer(String),
    #[error("the API key has characters that no key has")]
    BadKey,
    #[error("the tenant id has characters that no id has")]
    BadTenant,
    #[error("no API key: give --key or HOTHOUSE_API_KEY, or call from the folder in which `hothouse up` runs")]
    NoKey,
    #[error("cannot read the key in {}", path.display())]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{problem}")]
    Problem {
        problem: Problem,
        /// The server's own wish, where it had one.
        retry_after: Option<Duration>,
    },
    #[error("the server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("the connection to the server failed")]
    Transport(#[source] reqwest::Error),
    #[error("the server's answer is not what this version of hothouse understands")]
    Answer(#[source] serde_json::Error),
    #[error("a line of the event stream is longer than {0} bytes")]
    EventTooLong(usize),
    #[error("the server answered an address that is not its own: {0}")]
    ForeignUrl(String),
}

impl Error {
    /// Can the same call succeed a moment later?
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Problem { problem, .. } => matches!(problem.status.as_u16(), 429 | 502 | 503 | 504),
            Self::TimedOut(_) | Self::Transport(_) => true,
            _ => false,
        }
    }

    /// Is there nothing of that name?
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Problem { problem, .. } if problem.status == StatusCode::NOT_FOUND)
    }

    /// How long the server asks to wait before the next call.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
