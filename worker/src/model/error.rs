//! Why a model call failed, and what that means for trying again.

use std::fmt;
use std::time::Duration;

use common::job::failure::{Failure, FailureCode};
use common::queue::Obstacle;

/// The longest pause that a provider is believed to want: some send a time of day where seconds are meant.
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// Why a model call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text does not name a model.
    #[error("{name:?} does not name a model as provider/model")]
    Name {
        /// The text.
        name: String,
    },
    /// The provider of the model is not set up on this worker.
    #[error("no provider {provider:?} is set up (there are: {known})")]
    UnknownProvider {
        /// The provider.
        provider: String,
        /// Those that are set up.
        known: String,
    },
    /// The agent names no model at all.
    #[error("no model is named")]
    NoModel,
    /// The conversation does not end with the user.
    #[error("there is nothing to answer: the conversation does not end with a message of the user")]
    NothingToAnswer,
    /// A setting of a provider cannot be used.
    #[error("settings of the model provider {provider}: {reason}")]
    Settings {
        /// The provider.
        provider: String,
        /// A sentence that names the setting.
        reason: String,
    },
    /// No connection came about.
    #[error("cannot connect to the model's provider")]
    Connect(#[source] reqwest::Error),
    /// The provider was silent for too long.
    #[error("the model's provider was silent for {limit:?} ({phase})")]
    Timeout {
        /// What was waited for.
        phase: Phase,
        /// How long.
        limit: Duration,
    },
    /// The provider said no, before its answer or in the middle of it.
    #[error("the model's provider refused: {0}")]
    Refused(Box<Refusal>),
    /// The connection ended before the answer did.
    #[error("the answer of the model's provider broke off")]
    Cut(#[source] Option<reqwest::Error>),
    /// The answer does not follow the wire format.
    #[error("the answer of the model's provider is malformed: {what}")]
    Malformed {
        /// What is wrong with it.
        what: String,
    },
    /// The account of the model is to be left alone for a while: nothing was asked.
    #[error("calls of {provider} have to wait for {wait:?}: {}", why(*by))]
    Held {
        /// The provider.
        provider: String,
        /// What stands in the way.
        by: Obstacle,
        /// How long, as far as is known.
        wait: Duration,
    },
    /// The call may cost more than is left of a budget: nothing was asked.
    #[error("the budget is used up: {left}")]
    Budget {
        /// What is left, and what of it the call would need.
        left: String,
    },
    /// A budget in dollars is set, and nobody knows what the model costs.
    #[error("the price of {model} is not known, so a budget in dollars cannot be kept")]
    Unpriced {
        /// The model.
        model: String,
    },
    /// What a call needs beside its provider is away.
    #[error("the budget cannot be asked")]
    Books(#[source] Box<common::store::Error>),
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

fn why(by: Obstacle) -> &'static str {
    match by {
        Obstacle::Pause => "the provider asked for a pause",
        Obstacle::Circuit => "its calls keep failing",
        Obstacle::Calls => "as many as may be are under way",
        Obstacle::Tokens => "the tokens of this minute are used up",
    }
}

/// What was waited for when time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A connection.
    Connect,
    /// The first byte of the answer.
    FirstByte,
    /// An answer that is not streamed, and so has its first byte when it is whole.
    Answer,
    /// The next byte of it; a provider's pings count.
    NextByte,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::FirstByte => "waiting for the first byte",
            Self::Answer => "waiting for an answer that is not streamed",
            Self::NextByte => "in the middle of the answer",
        })
    }
}

/// A provider's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it means, whoever the provider is.
    pub reason: Reason,
    /// The HTTP status; none when the error came inside a stream that began well.
    pub status: Option<u16>,
    /// The provider's own name for the error.
    pub kind: String,
    /// The provider's own words, cut to a sensible length.
    pub message: String,
    /// The provider's id of the request, for its support.
    pub request_id: Option<String>,
    /// How long the provider wants to be left alone.
    pub retry_after: Option<Duration>,
    /// The provider's own advice whether to try again.
    pub should_retry: Option<bool>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "{status} ")?;
        }
        write!(f, "{}: {}", self.kind, self.message)?;
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The request itself is at fault.
    InvalidRequest,
    /// The request is longer than the provider takes.
    TooLarge,
    /// The key is wrong, or may not do this.
    Authentication,
    /// There is no such model.
    NotFound,
    /// Money is used up: no waiting helps, though the status may be 429.
    SpendLimit,
    /// Too many calls or tokens for now.
    RateLimited,
    /// The provider has too much to do.
    Overloaded,
    /// The provider gave up after waiting for itself.
    Timeout,
    /// The provider's own fault.
    Server,
}

/// What a failure means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later.
    Transient,
    /// The same call fails again.
    Permanent,
    /// It took too long.
    Timeout,
    /// Somebody asked for it.
    Cancelled,
}

impl Error {
    /// What this means for the next step.
    pub fn class(&self) -> Class {
        match self {
            Self::Connect(_) | Self::Cut(_) | Self::Malformed { .. } | Self::Held { .. } | Self::Books(_) => {
                Class::Transient
            }
            Self::Timeout { .. } => Class::Timeout,
            Self::Cancelled => Class::Cancelled,
            Self::Name { .. }
            | Self::UnknownProvider { .. }
            | Self::NoModel
            | Self::NothingToAnswer
            | Self::Budget { .. }
            | Self::Unpriced { .. }
            | Self::Settings { .. } => Class::Permanent,
            Self::Refused(refusal) => refusal.class(),
        }
    }

    /// How long the provider wants to be left alone, as far as it is believed.
    pub fn retry_after(&self) -> Option<Duration> {
        let wanted = match self {
            Self::Refused(refusal) => refusal.retry_after,
            Self::Held { wait, .. } => Some(*wait),
            _ => None,
        };
        wanted.map(|wait| wait.min(PAUSE_MAX))
    }

    /// How long nothing is to be asked, when that is a matter of waiting alone and nobody's failure: the provider's limits,
    /// or ours of its account.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Held { .. } => self.retry_after(),
            Self::Refused(refusal) if refusal.reason == Reason::RateLimited => self.retry_after(),
            _ => None,
        }
    }

    /// Whether the provider may have counted the call although it did not answer it: it had the request, and did not refuse
    /// it.
    pub fn may_have_cost(&self) -> bool {
        match self {
            Self::Cut(_) | Self::Malformed { .. } => true,
            Self::Timeout { phase, .. } => *phase != Phase::Connect,
            _ => false,
        }
    }

    /// Whether another model may do what this one did not. A request that is at fault itself stays at fault.
    pub fn may_fall_back(&self) -> bool {
        match self {
            Self::Cancelled
            | Self::Name { .. }
            | Self::NoModel
            | Self::NothingToAnswer
            | Self::Budget { .. }
            | Self::Books(_) => false,
            Self::Refused(refusal) => refusal.reason != Reason::InvalidRequest,
            _ => true,
        }
    }

    /// The failure as the job's row shows it. What a provider says about our key stays in the log.
    pub fn failure(&self) -> Failure {
        let code = match (self, self.class()) {
            (Self::NothingToAnswer, _) => FailureCode::InvalidInput,
            (Self::Budget { .. }, _) => FailureCode::BudgetExceeded,
            (_, Class::Permanent) => FailureCode::ModelRefused,
            (_, Class::Transient | Class::Timeout | Class::Cancelled) => FailureCode::ModelFailed,
        };
        let message = match self {
            Self::Refused(refusal) if refusal.reason == Reason::Authentication => {
                "the model's provider does not accept the key that is set for it".to_owned()
            }
            other => other.to_string(),
        };
        Failure::new(code, message)
    }
}

impl Refusal {
    fn class(&self) -> Class {
        let by_itself = match self.reason {
            Reason::SpendLimit => return Class::Permanent,
            Reason::RateLimited | Reason::Overloaded | Reason::Server | Reason::Timeout => true,
            Reason::InvalidRequest | Reason::TooLarge | Reason::Authentication | Reason::NotFound => false,
        };
        if self.should_retry.unwrap_or(by_itself) {
            Class::Transient
        } else {
            Class::Permanent
        }
    }
}

#[cfg(test)]
impl Error {
    /// A provider's refusal of which nothing else is known.
    pub(super) fn refused(reason: Reason, retry_after: Option<Duration>) -> Self {
        Self::Refused(Box::new(Refusal {
            reason,
            status: None,
            kind: String::new(),
            message: String::new(),
            request_id: None,
            retry_after,
            should_retry: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn refused(reason: Reason, should_retry: Option<bool>) -> Error {
        Error::Refused(Box::new(Refusal {
            reason,
            status: Some(429),
            kind: "some_error".to_owned(),
            message: "key sk-123 is bad".to_owned(),
            request_id: None,
            retry_after: Some(Duration::from_secs(3)),
            should_retry,
        }))
    }

    #[rstest]
    #[case(Reason::RateLimited, None, Class::Transient)]
    #[case(Reason::Overloaded, None, Class::Transient)]
    #[case(Reason::RateLimited, Some(false), Class::Permanent)]
    #[case(Reason::SpendLimit, None, Class::Permanent)]
    #[case(Reason::SpendLimit, Some(true), Class::Permanent)]
    #[case(Reason::InvalidRequest, Some(true), Class::Transient)]
    #[case(Reason::NotFound, None, Class::Permanent)]
    fn a_refusal_has_the_class_of_its_reason_unless_the_provider_advises_otherwise(
        #[case] reason: Reason,
        #[case] should_retry: Option<bool>,
        #[case] class: Class,
    ) {
        assert_eq!(refused(reason, should_retry).class(), class);
    }

    #[test]
    fn a_provider_is_believed_to_want_an_hour_at_most() {
        let wanting = |wait| {
            let Error::Refused(mut refusal) = refused(Reason::RateLimited, None) else {
                unreachable!("it is a refusal")
            };
            refusal.retry_after = Some(wait);
            Error::Refused(refusal)
        };
        for wait in [Duration::from_secs(1_790_000_000), Duration::MAX] {
            let error = wanting(wait);
            assert_eq!((error.retry_after(), error.wait()), (Some(PAUSE_MAX), Some(PAUSE_MAX)));
        }
        assert_eq!(wanting(Duration::from_secs(7)).wait(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_a_provider_says_about_a_key_is_not_shown() {
        let failure = refused(Reason::Authentication, None).failure();
        assert_eq!(failure.code, FailureCode::ModelRefused);
        assert!(!failure.message.contains("sk-123"), "{}", failure.message);
    }
}
