//! Approvals: questions to people, as a job asks them. Pure.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::ApprovalId;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApprovalState {
    /// Somebody may answer.
    Open,
    /// The tool may run.
    Approved,
    /// It may not.
    Denied,
    /// Nobody answered in time: it may not.
    Expired,
    /// The job ended meanwhile: nobody is asked any more.
    Withdrawn,
}

impl ApprovalState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Open, Self::Approved, Self::Denied, Self::Expired, Self::Withdrawn];

    /// The name as it is written in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// What `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A question about to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct NewApproval {
    /// Its id.
    pub id: ApprovalId,
    /// The step of the call, its place in it, and the attempt whose answer holds it.
    pub call: (u32, u32, u32),
    /// The model's name for the call.
    pub tool_call_id: String,
    /// The tool.
    pub tool: String,
    /// What it would be called with.
    pub input: Value,
    /// When it is asked.
    pub created_at: DateTime<Utc>,
    /// When the answer is no, unless there is one.
    pub deadline: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_name_everywhere() {
        for state in ApprovalState::ALL {
            assert_eq!(ApprovalState::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
