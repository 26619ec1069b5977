//! The states of a job and the only function that moves it from one to another.
//!
//! | state | a job comes here when | and leaves when |
//! |---|---|---|
//! | scheduled | it is submitted with a time in the future | the time has come |
//! | queued | it may run; a retry, a wait or a lost worker brings it back | a worker claims it |
//! | running | a worker claimed it | the attempt settles, or its worker is lost |
//! | waiting | an approval or child jobs must end first; it holds no worker | they have |
//! | retrying | an attempt failed and another is allowed | the backoff has passed |
//! | succeeded, failed, cancelled | it ended | never |

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::WorkerId;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Runs later.
    Scheduled {
        /// When.
        due_at: DateTime<Utc>,
    },
    /// May run.
    Queued {
        /// Since when.
        queued_at: DateTime<Utc>,
    },
    /// A worker holds it.
    Running {
        /// The fence.
        attempt: u32,
        /// Who.
        worker_id: WorkerId,
        /// Since when.
        started_at: DateTime<Utc>,
    },
    /// Something else must end first; nobody holds it.
    Waiting {
        /// When it goes on in any case.
        deadline: Option<DateTime<Utc>>,
    },
    /// An attempt failed; the next one comes later.
    Retrying {
        /// When.
        due_at: DateTime<Utc>,
    },
    /// Ended well.
    Succeeded {
        /// When.
        finished_at: DateTime<Utc>,
    },
    /// Ended badly.
    Failed {
        /// When.
        finished_at: DateTime<Utc>,
    },
    /// Ended because somebody asked.
    Cancelled {
        /// When.
        finished_at: DateTime<Utc>,
    },
}

/// A state without its data, as SQL and JSON write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "JobState documents each")]
pub enum StateName {
    Scheduled,
    Queued,
    Running,
    Waiting,
    Retrying,
    Succeeded,
    Failed,
    Cancelled,
}

impl StateName {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Queued,
        Self::Running,
        Self::Waiting,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.as_str() == text)
    }

    /// Whether a job in this state has ended for good.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What may happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// Its time has come.
    Promoted,
    /// A worker took it; the attempt is one more than the last.
    Claimed {
        /// The new attempt.
        attempt: u32,
        /// Who.
        worker_id: WorkerId,
    },
    /// The holder of the attempt says that it ended well.
    Succeeded {
        /// The holder's fence.
        attempt: u32,
    },
    /// The holder of the attempt, or whoever took over a lost one, says that it ended badly for good.
    Failed {
        /// The holder's fence.
        attempt: u32,
    },
    /// The attempt failed and another one follows later.
    RetryAt {
        /// The holder's fence.
        attempt: u32,
        /// When.
        due_at: DateTime<Utc>,
    },
    /// The attempt was given back, or its worker was lost, and the next one may start at once.
    GivenBack {
        /// The holder's fence.
        attempt: u32,
    },
    /// The attempt gave up its worker until something else has ended.
    Waits {
        /// The holder's fence.
        attempt: u32,
        /// When it goes on in any case.
        deadline: Option<DateTime<Utc>>,
    },
    /// What it waited for has ended, or its deadline has passed.
    Resumed,
    /// Somebody cancelled a job that nobody holds.
    Cancelled,
    /// The holder of the attempt obeyed a request to cancel.
    Stopped {
        /// The holder's fence.
        attempt: u32,
    },
}

/// A change that the state does not allow, or that came from a holder who holds nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a job that is {}", state.name().as_str())]
pub struct InvalidTransition {
    /// The state that stays.
    pub state: JobState,
    /// What was refused.
    pub event: JobEvent,
}

impl JobState {
    /// The state without its data.
    pub fn name(&self) -> StateName {
        match self {
            Self::Scheduled { .. } => StateName::Scheduled,
            Self::Queued { .. } => StateName::Queued,
            Self::Running { .. } => StateName::Running,
            Self::Waiting { .. } => StateName::Waiting,
            Self::Retrying { .. } => StateName::Retrying,
            Self::Succeeded { .. } => StateName::Succeeded,
            Self::Failed { .. } => StateName::Failed,
            Self::Cancelled { .. } => StateName::Cancelled,
        }
    }

    /// Whether the job has ended for good.
    pub fn is_terminal(&self) -> bool {
        self.name().is_terminal()
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`InvalidTransition`] when the state does not allow it, or the event's attempt is not the one that is running.
    pub fn apply(self, event: JobEvent, now: DateTime<Utc>) -> Result<Self, InvalidTransition> {
        use JobEvent as E;
        let next = match (self, event) {
            (Self::Scheduled { .. } | Self::Retrying { .. }, E::Promoted) | (Self::Waiting { .. }, E::Resumed) => {
                Self::Queued { queued_at: now }
            }
            (Self::Queued { .. }, E::Claimed { attempt, worker_id }) => Self::Running {
                attempt,
                worker_id,
                started_at: now,
            },
            (Self::Running { attempt, .. }, E::Succeeded { attempt: of }) if of == attempt => {
                Self::Succeeded { finished_at: now }
            }
            (Self::Running { attempt, .. }, E::Failed { attempt: of }) if of == attempt => {
                Self::Failed { finished_at: now }
            }
            (Self::Running { attempt, .. }, E::RetryAt { attempt: of, due_at }) if of == attempt => {
                Self::Retrying { due_at }
            }
            (Self::Running { attempt, .. }, E::GivenBack { attempt: of }) if of == attempt => {
                Self::Queued { queued_at: now }
            }
            (Self::Running { attempt, .. }, E::Waits { attempt: of, deadline }) if of == attempt => {
                Self::Waiting { deadline }
            }
            (Self::Running { attempt, .. }, E::Stopped { attempt: of }) if of == attempt => {
                Self::Cancelled { finished_at: now }
            }
            (
                Self::Scheduled { .. } | Self::Queued { .. } | Self::Waiting { .. } | Self::Retrying { .. },
                E::Cancelled,
            ) => Self::Cancelled { finished_at: now },
            (state, event) => return Err(InvalidTransition { state, event }),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPT: u32 = 3;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn states() -> Vec<JobState> {
        let worker_id = WorkerId::new();
        vec![
            JobState::Scheduled { due_at: now() },
            JobState::Queued { queued_at: now() },
            JobState::Running {
                attempt: ATTEMPT,
                worker_id,
                started_at: now(),
            },
            JobState::Waiting { deadline: Some(now()) },
            JobState::Retrying { due_at: now() },
            JobState::Succeeded { finished_at: now() },
            JobState::Failed { finished_at: now() },
            JobState::Cancelled { finished_at: now() },
        ]
    }

    fn events(attempt: u32) -> Vec<(&'static str, JobEvent)> {
        vec![
            ("promoted", JobEvent::Promoted),
            (
                "claimed",
                JobEvent::Claimed {
                    attempt: ATTEMPT + 1,
                    worker_id: WorkerId::new(),
                },
            ),
            ("succeeded", JobEvent::Succeeded { attempt }),
            ("failed", JobEvent::Failed { attempt }),
            ("retry_at", JobEvent::RetryAt { attempt, due_at: now() }),
            ("given_back", JobEvent::GivenBack { attempt }),
            (
                "waits",
                JobEvent::Waits {
                    attempt,
                    deadline: None,
                },
            ),
            ("resumed", JobEvent::Resumed),
            ("cancelled", JobEvent::Cancelled),
            ("stopped", JobEvent::Stopped { attempt }),
        ]
    }

    #[test]
    fn the_whole_table_is_as_written_here() {
        let allowed = [
            ("scheduled", "promoted", "queued"),
            ("scheduled", "cancelled", "cancelled"),
            ("queued", "claimed", "running"),
            ("queued", "cancelled", "cancelled"),
            ("running", "succeeded", "succeeded"),
            ("running", "failed", "failed"),
            ("running", "retry_at", "retrying"),
            ("running", "given_back", "queued"),
            ("running", "waits", "waiting"),
            ("running", "stopped", "cancelled"),
            ("waiting", "resumed", "queued"),
            ("waiting", "cancelled", "cancelled"),
            ("retrying", "promoted", "queued"),
            ("retrying", "cancelled", "cancelled"),
        ];
        let mut found = Vec::new();
        for state in states() {
            for (name, event) in events(ATTEMPT) {
                if let Ok(next) = state.apply(event, now()) {
                    found.push((state.name().as_str(), name, next.name().as_str()));
                }
            }
        }
        assert_eq!(found, allowed);
    }

    #[test]
    fn another_attempt_changes_nothing() {
        for state in states() {
            for (name, event) in events(ATTEMPT - 1) {
                let fenced = ["succeeded", "failed", "retry_at", "given_back", "waits", "stopped"].contains(&name);
                assert!(!(fenced && state.apply(event, now()).is_ok()), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn names_read_as_they_are_written() {
        for name in StateName::ALL {
            assert_eq!(StateName::parse(name.as_str()), Some(name));
        }
    }
}
