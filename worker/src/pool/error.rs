//! Why a job got no sandbox.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use crate::{driver, sandbox};

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
        last_error.as_ref().map(|e| format!("; the last start failed: {e}")).unwrap_or_default())]
    Exhausted {
        /// Its name.
        environment: String,
        /// How long the job waited.
        waited: Duration,
        /// The last failed start, when none has succeeded since.
        last_error: Option<String>,
        /// Whether that failed because the engine did not answer: no fault of the job's.
        engine_is_away: bool,
    },
    /// The pool has stopped.
    #[error("the pool has stopped")]
    Stopped,
}

impl Error {
    /// Whether the same may work later without anybody changing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSuchEnvironment { .. } | Self::Unsealed { .. } => false,
            Self::Start(error) => error.is_transient(),
            Self::Failing { source } => source.is_transient(),
            Self::Connect(_) | Self::SlowStart { .. } | Self::Exhausted { .. } | Self::Stopped => true,
        }
    }

    /// Whether what starts sandboxes does not answer.
    pub(super) fn is_engine_away(&self) -> bool {
        matches!(self, Self::Start(driver::Error::Unavailable { .. }))
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
