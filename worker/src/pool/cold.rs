//! Why a job found no sandbox ready.

/// The reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColdStart {
    /// Starts fail.
    Failing,
    /// None has been started yet.
    Starting,
    /// The environment has as many as it may have.
    Ceiling,
    /// More jobs came than were ready.
    Burst,
    /// The job needs a larger one.
    Profile,
    /// What was ready did not answer.
    Unhealthy,
}

impl ColdStart {
    /// Its name in metrics and reports.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Starting => "starting",
            Self::Ceiling => "ceiling",
            Self::Burst => "burst",
            Self::Profile => "profile",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// The same for the job's owner.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::Failing => "sandboxes did not start just before",
            Self::Starting => "the worker had only begun to start sandboxes",
            Self::Ceiling => "every sandbox that the environment may have was in use",
            Self::Burst => "more jobs came at once than sandboxes were ready",
            Self::Profile => "the job needs a larger sandbox than those that are kept ready",
            Self::Unhealthy => "what was ready did not answer any more",
        }
    }
}
