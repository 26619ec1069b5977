//! Why a sandbox ends.

use crate::connection::Lost;

/// Why a sandbox cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The worker.
    #[error("{0}")]
    Lost(#[from] Lost),
    /// A tree without a supervisor.
    #[error("a supervisor is gone or does not obey")]
    Unsupervised,
    /// No lease.
    #[error("the lease is over")]
    LeaseOver,
}

impl From<Unsupervised> for Trouble {
    fn from(_: Unsupervised) -> Self {
        Self::Unsupervised
    }
}

/// The supervisor of a run is not there any more or does not obey: nobody answers for the tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unsupervised;
