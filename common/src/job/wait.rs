//! Waiting: what a job waits for that holds no worker, and what wakes it.
//!
//! An executor ends its attempt with [`super::decision::Outcome::Waits`]; the job then holds neither a slot nor a place,
//! but for its conversation's. When what it waits for has ended, or the deadline has passed, it is queued again, and
//! its next attempt finds in [`super::Job::woken_by`] which of them it was. A wait costs no failure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// One wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// For what.
    pub waits_for: WaitFor,
    /// When it ends in any case.
    pub deadline: Option<DateTime<Utc>>,
}

/// What a job waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum WaitFor {
    /// The jobs whose `parent_id` it is: those that it submits with the wait, and those of earlier waits.
    Children {
        /// Which of them.
        until: Until,
    },
    /// Somebody's answer, which is brought by [`crate::store::Store::resume`].
    Answer,
    /// The end of a model provider's pause, or a place among its calls: the deadline says when to try again.
    Provider,
}

/// How many children a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// All of them have ended.
    AllEnded,
    /// One has failed or was cancelled, or all have ended.
    FirstFailure,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The children.
    Children,
    /// The answer.
    Answer,
    /// The deadline.
    Deadline,
}

impl Wait {
    /// A wait for children without a deadline.
    pub fn children(until: Until) -> Self {
        Self {
            waits_for: WaitFor::Children { until },
            deadline: None,
        }
    }

    /// A wait for an answer without a deadline.
    pub fn answer() -> Self {
        Self {
            waits_for: WaitFor::Answer,
            deadline: None,
        }
    }

    /// A wait until a model's provider may be asked again.
    pub fn provider(until: DateTime<Utc>) -> Self {
        Self {
            waits_for: WaitFor::Provider,
            deadline: Some(until),
        }
    }

    /// The same wait, no longer than until `deadline`.
    pub fn until(self, deadline: DateTime<Utc>) -> Self {
        Self {
            deadline: Some(deadline),
            ..self
        }
    }
}

impl WaitFor {
    /// The word for it in the event log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Children { .. } => "children",
            Self::Answer => "answer",
            Self::Provider => "provider",
        }
    }
}

impl Woken {
    /// The name as it is written in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Children => "children",
            Self::Answer => "answer",
            Self::Deadline => "deadline",
        }
    }

    /// What `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Children, Self::Answer, Self::Deadline]
            .into_iter()
            .find(|woken| woken.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_reads_as_it_is_written() {
        let first = WaitFor::Children {
            until: Until::FirstFailure,
        };
        let json = serde_json::to_value(&first).unwrap();
        assert_eq!(json, serde_json::json!({"on": "children", "until": "first_failure"}));
        assert_eq!(serde_json::from_value::<WaitFor>(json).unwrap(), first);
        for woken in [Woken::Children, Woken::Answer, Woken::Deadline] {
            assert_eq!(Woken::parse(woken.as_str()), Some(woken));
        }
    }
}
