//! Groups: many jobs submitted as one, which waits for all of them.
//!
//! The first attempt of a group submits its jobs and waits; a later one looks at what became of them and decides here,
//! in [`next`], what follows. A group is thus a user of [`super::wait`] like any other.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::exec::ExecInput;
use super::failure::{Failure, FailureCode};
use super::spec::{JobSpec, Kind};
use super::state::StateName;
use crate::ids::{AgentId, JobId};

/// What a group does when one of its jobs does not succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The others go on; the group succeeds and its result says which failed.
    #[default]
    Continue,
    /// The others are cancelled and the group fails.
    Cancel,
}

/// The input of a group as its worker reads it: every job was checked when the group was submitted.
#[derive(Debug, Serialize, Deserialize)]
pub struct GroupInput {
    /// When one does not succeed.
    pub on_failure: OnFailure,
    /// Its jobs, in order.
    pub jobs: Vec<GroupJob>,
}

/// One job of a group before it is submitted.
#[derive(Debug, Serialize, Deserialize)]
pub struct GroupJob {
    /// What its submitter asked for.
    pub spec: JobSpec,
    /// Its class.
    pub class: String,
    /// The agent that it runs, and its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<(AgentId, u32)>,
    /// The input of its kind.
    pub input: Box<RawValue>,
}

impl GroupInput {
    /// The input as it may be shown: values of `env` are left out.
    pub fn shown(&self) -> Value {
        let jobs: Vec<Value> = self.jobs.iter().map(GroupJob::shown).collect();
        json!({ "on_failure": self.on_failure, "jobs": jobs })
    }
}

impl GroupJob {
    fn shown(&self) -> Value {
        let input = match self.spec.kind {
            Kind::Exec => serde_json::from_str::<ExecInput>(self.input.get())
                .ok()
                .and_then(|input| serde_json::to_value(input.redacted()).ok()),
            _ => serde_json::from_str(self.input.get()).ok(),
        };
        json!({
            "kind": self.spec.kind, "queue": self.spec.queue, "priority": self.spec.priority, "input": input,
            "metadata": self.spec.metadata,
        })
    }
}

/// One job of a group as its result shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// The job.
    pub id: JobId,
    /// When it was submitted.
    #[serde(skip)]
    pub created_at: DateTime<Utc>,
    /// How it ended, or where it is.
    pub state: StateName,
    /// What came out of it.
    pub result: Option<Box<RawValue>>,
    /// Whether its result is left out because all of them together are too long: read the job.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub result_omitted: bool,
    /// Why it failed.
    pub error: Option<Failure>,
}

/// What a group does when it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It waits for the rest of its jobs.
    Wait,
    /// It asks the rest of its jobs to stop, and waits until they have.
    CancelRest,
    /// All have ended, and so does it: well, or with this failure.
    End(Option<Failure>),
}

/// What follows for a group whose jobs are in these states. `is_late` says that its deadline has passed.
pub fn next(on_failure: OnFailure, states: &[StateName], is_late: bool) -> Next {
    let count = |wanted: StateName| states.iter().filter(|state| **state == wanted).count();
    let (failed, cancelled) = (count(StateName::Failed), count(StateName::Cancelled));
    let has_failed = failed + cancelled > 0;
    if states.iter().any(|state| !state.is_terminal()) {
        return if is_late || (has_failed && on_failure == OnFailure::Cancel) {
            Next::CancelRest
        } else {
            Next::Wait
        };
    }
    let failure = if cancelled > 0 && is_late {
        let message = format!("{cancelled} of its jobs had not ended when its time was over");
        Some(Failure::new(FailureCode::Timeout, message))
    } else if has_failed && on_failure == OnFailure::Cancel {
        let message = format!("{failed} of its jobs failed and {cancelled} were cancelled");
        Some(Failure::new(FailureCode::ChildFailed, message))
    } else {
        None
    };
    Next::End(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use StateName::{Cancelled, Failed, Queued, Running, Succeeded};

    fn code(next: Next) -> Option<FailureCode> {
        match next {
            Next::End(failure) => failure.map(|failure| failure.code),
            other => panic!("{other:?} is no end"),
        }
    }

    #[test]
    fn it_waits_for_the_last_of_its_jobs() {
        assert_eq!(next(OnFailure::Continue, &[Failed, Running], false), Next::Wait);
        assert_eq!(next(OnFailure::Cancel, &[Succeeded, Queued], false), Next::Wait);
    }

    #[test]
    fn a_failure_ends_the_others_only_when_it_is_told_to() {
        assert_eq!(next(OnFailure::Cancel, &[Failed, Queued], false), Next::CancelRest);
        assert_eq!(next(OnFailure::Cancel, &[Cancelled, Queued], false), Next::CancelRest);
        assert_eq!(
            code(next(OnFailure::Cancel, &[Failed, Cancelled], false)),
            Some(FailureCode::ChildFailed)
        );
        assert_eq!(code(next(OnFailure::Continue, &[Failed, Succeeded], false)), None);
        assert_eq!(code(next(OnFailure::Cancel, &[Succeeded, Succeeded], false)), None);
    }

    #[test]
    fn its_deadline_ends_what_has_not_ended() {
        assert_eq!(next(OnFailure::Continue, &[Succeeded, Running], true), Next::CancelRest);
        assert_eq!(
            code(next(OnFailure::Continue, &[Succeeded, Cancelled], true)),
            Some(FailureCode::Timeout)
        );
        assert_eq!(code(next(OnFailure::Continue, &[Succeeded, Succeeded], true)), None);
    }
}
