//! Why a job got no sandbox.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use common::store::sandboxes::HeldBack;

use super::LastError;
use crate::{driver, sandbox};

/// Whose fault it is that a sandbox did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The engine does not answer.
    Engine,
    /// The machine's disk is full.
    Disk,
    /// The environment's, or that of something that passes.
    Other,
}

impl Fault {
    /// Whether it lies with this machine, so that the same job may find a sandbox on another.
    pub const fn is_of_machine(self) -> bool {
        self.held_back().is_some()
    }

    /// What of this machine it is.
    pub const fn held_back(self) -> Option<HeldBack> {
        match self {
            Self::Engine => Some(HeldBack::Engine),
            Self::Disk => Some(HeldBack::Disk),
            Self::Other => None,
        }
    }
}

/// Why a job got no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job asks for an environment that this worker does not have.
    #[error("there is no environment {environment:?}")]
    NoSuchEnvironment {
        /// Its name.
        environment: String,
    },
    /// The driver could not start it.
    #[error("a sandbox did not start")]
    Start(#[source] driver::Error),
    /// It started and its init did not answer as it should.
    #[error("the init of a sandbox did not answer")]
    Connect(#[source] sandbox::Error),
    /// It took too long to start.
    #[error("a sandbox did not start within {}", humantime::format_duration(*waited))]
    SlowStart {
        /// How long it was given.
        waited: Duration,
    },
    /// An attempt to break a sandbox succeeded, or could not be judged.
    #[error("a sandbox did not stand the attempt to {attempt}: {verdict}")]
    Unsealed {
        /// What was tried.
        attempt: &'static str,
        /// What came of it.
        verdict: String,
    },
    /// Starts fail in a way that trying again does not help.
    #[error("sandboxes of this environment cannot start")]
    Failing {
        /// The last failure.
        #[source]
        source: Arc<Self>,
    },
    /// None became free in time.
    #[error("no sandbox of environment {environment:?} became free within {}{}", humantime::format_duration(*waited),
        last_error.as_ref().map(|e| format!("; the last start failed: {}", e.error)).unwrap_or_default())]
    Exhausted {
        /// Its name.
        environment: String,
        /// How long the job waited.
        waited: Duration,
        /// The last failed start, when none has succeeded since.
        last_error: Option<LastError>,
    },
    /// The pool has stopped.
    #[error("the pool has stopped")]
    Stopped,
}

impl Error {
    /// Whether the same may work later without anybody changing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSuchEnvironment { .. } | Self::Unsealed { .. } | Self::Connect(sandbox::Error::Version { .. }) => {
                false
            }
            Self::Start(error) => error.is_transient(),
            Self::Failing { source } => source.is_transient(),
            Self::Connect(_) | Self::SlowStart { .. } | Self::Exhausted { .. } | Self::Stopped => true,
        }
    }

    /// Whose fault it is.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Start(driver::Error::Unavailable { .. }) => Fault::Engine,
            Self::Start(driver::Error::NoRoom { .. }) => Fault::Disk,
            Self::Failing { source } => source.fault(),
            _ => Fault::Other,
        }
    }

    /// What the owner of a job that got no sandbox may know: nothing of the machine's insides.
    pub fn told(&self) -> String {
        match self {
            Self::NoSuchEnvironment { .. } | Self::SlowStart { .. } => self.to_string(),
            Self::Start(driver::Error::Unavailable { .. }) => {
                "the engine that starts sandboxes does not answer".to_owned()
            }
            Self::Start(driver::Error::NoRoom { .. }) => {
                "the machine that starts sandboxes has no room left on its disk".to_owned()
            }
            Self::Start(driver::Error::NoSuchImage { image }) => {
                format!("the image of its environment, {image:?}, is not there")
            }
            Self::Connect(sandbox::Error::Version { .. }) => {
                "the image of its environment was built for another version of Hothouse than this worker's".to_owned()
            }
            Self::Unsealed { .. } => {
                "sandboxes of its environment are not sealed on this machine, so nothing runs in them".to_owned()
            }
            Self::Failing { source } => source.told(),
            Self::Exhausted {
                environment,
                waited,
                last_error,
            } => {
                let waited = humantime::format_duration(*waited);
                let because = last_error
                    .as_ref()
                    .map(|last| format!(": {}", last.told))
                    .unwrap_or_default();
                format!("no sandbox of environment {environment:?} became free within {waited}{because}")
            }
            Self::Start(_) | Self::Connect(_) | Self::Stopped => "no sandbox could be started".to_owned(),
        }
    }

    /// Its text and those of its causes, in one line for status and log.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
