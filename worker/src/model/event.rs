//! What a model says while it answers, in one shape for all providers.

use common::message::Usage;
use serde::{Deserialize, Serialize};

/// One piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    /// More of the text.
    TextDelta {
        /// The piece.
        text: String,
    },
    /// More of the reasoning.
    ReasoningDelta {
        /// The piece.
        text: String,
    },
    /// The reasoning is whole. Reasoning without this is not given back to the provider.
    ReasoningEnd {
        /// What proves it to the provider.
        signature: Option<String>,
        /// Reasoning that the provider encrypted as a whole.
        redacted: Option<String>,
    },
    /// The model begins a tool call. Several may be open at once, told apart by `index`.
    ToolCallStart {
        /// Position of the call's block in the answer.
        index: u32,
        /// The provider's id for it.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's input.
    ToolCallDelta {
        /// Position of the call's block in the answer.
        index: u32,
        /// A piece of JSON text.
        json: String,
    },
    /// A call's input is whole.
    ToolCallEnd {
        /// Position of the call's block in the answer.
        index: u32,
    },
    /// The running totals of this call.
    Usage(Usage),
    /// The answer is whole; nothing follows.
    End {
        /// Why it ended.
        stop_reason: StopReason,
    },
}

impl ModelEvent {
    /// Whether a person may have seen something of the answer once this was passed on.
    pub fn is_content(&self) -> bool {
        !matches!(self, Self::Usage(_))
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model had said all.
    EndTurn,
    /// `max_output_tokens` were written.
    MaxTokens,
    /// One of the stop sequences came.
    StopSequence,
    /// It wants its tool calls answered.
    ToolUse,
    /// The provider paused a long turn.
    PauseTurn,
    /// The model declined.
    Refusal,
    /// The conversation no longer fits.
    ContextWindowExceeded,
    /// A reason that this version does not know.
    #[serde(untagged)]
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_reason_that_is_not_known_is_kept_as_it_came() {
        for (wire, reason) in [
            ("end_turn", StopReason::EndTurn),
            ("tool_use", StopReason::ToolUse),
            ("tired", StopReason::Other("tired".to_owned())),
        ] {
            assert_eq!(serde_json::from_value::<StopReason>(wire.into()).unwrap(), reason);
            assert_eq!(serde_json::to_value(&reason).unwrap(), wire);
        }
    }
}
