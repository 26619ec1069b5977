//! The events of a job: one strictly increasing sequence that every reader sees whole and once.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::approval::ApprovalState;
use super::failure::Failure;
use crate::ids::{ApprovalId, WorkerId};

/// Events that a dead attempt may have numbered beyond what Postgres knows: a chunk is written at the latest when so
/// many are unwritten, and whoever takes the job over goes on this far above the last written number. So no number is
/// ever given twice, and nobody needs to ask Redis for the last one.
pub const UNWRITTEN_MAX: u64 = 10_000;

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: the SSE id.
    pub seq: u64,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The attempt that it belongs to; 0 before the first.
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What is read of an event that cannot be read.
#[derive(Deserialize)]
struct Head {
    seq: u64,
    at: DateTime<Utc>,
    attempt: u32,
}

impl Event {
    /// Reads an event as it was written. One that this program cannot read, be it of a newer one or of one that wrote
    /// deeper JSON than can be read, is a status that says so: no event makes a log unreadable.
    ///
    /// # Errors
    /// When not even its number can be read.
    pub fn read(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json).or_else(|error| {
            let Head { seq, at, attempt } = serde_json::from_slice(json)?;
            let (phase, detail) = ("unreadable".to_owned(), Some(error.to_string()));
            let body = EventBody::Status { phase, detail };
            Ok(Self { seq, at, attempt, body })
        })
    }
}

/// What happened. The names and fields are the wire contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
#[expect(
    missing_docs,
    reason = "the fields are the wire contract, which docs/api.md describes"
)]
pub enum EventBody {
    #[serde(rename = "queued")]
    Queued {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<u64>,
    },
    #[serde(rename = "started")]
    Started { worker: WorkerId },
    #[serde(rename = "status")]
    Status {
        phase: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    #[serde(rename = "stdout")]
    Stdout { text: String },
    #[serde(rename = "stderr")]
    Stderr { text: String },
    #[serde(rename = "message.delta")]
    MessageDelta { text: String },
    #[serde(rename = "message")]
    Message { message: Value },
    #[serde(rename = "reasoning.delta")]
    ReasoningDelta { text: String },
    #[serde(rename = "tool.started")]
    ToolStarted {
        tool_call_id: String,
        name: String,
        input: Value,
    },
    #[serde(rename = "tool.output")]
    ToolOutput { tool_call_id: String, text: String },
    #[serde(rename = "tool.finished")]
    ToolFinished {
        tool_call_id: String,
        is_error: bool,
        output: Value,
    },
    #[serde(rename = "usage")]
    Usage { usage: Value },
    #[serde(rename = "waiting")]
    Waiting {
        #[serde(rename = "for")]
        waits_for: String,
    },
    #[serde(rename = "approval.requested")]
    ApprovalRequested {
        approval_id: ApprovalId,
        tool_call_id: String,
        name: String,
        input: Value,
        deadline: DateTime<Utc>,
    },
    #[serde(rename = "approval.answered")]
    ApprovalAnswered {
        approval_id: ApprovalId,
        tool_call_id: String,
        state: ApprovalState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
    },
    #[serde(rename = "retrying")]
    Retrying {
        next_attempt: u32,
        retry_at: DateTime<Utc>,
        error: Failure,
    },
    #[serde(rename = "attempt_reset")]
    AttemptReset { discard_from_seq: u64 },
    #[serde(rename = "resume_gap")]
    ResumeGap {
        /// First number that may be missing.
        from_seq: u64,
        /// Last number that may be missing.
        to_seq: u64,
        reason: String,
    },
    #[serde(rename = "succeeded")]
    Succeeded {
        #[serde(default)]
        result: Value,
    },
    #[serde(rename = "failed")]
    Failed {
        error: Failure,
        #[serde(default)]
        result: Value,
    },
    #[serde(rename = "cancelled")]
    Cancelled {},
}

impl EventBody {
    /// The name that goes into SSE's `event:` field.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Status { .. } => "status",
            Self::Stdout { .. } => "stdout",
            Self::Stderr { .. } => "stderr",
            Self::MessageDelta { .. } => "message.delta",
            Self::Message { .. } => "message",
            Self::ReasoningDelta { .. } => "reasoning.delta",
            Self::ToolStarted { .. } => "tool.started",
            Self::ToolOutput { .. } => "tool.output",
            Self::ToolFinished { .. } => "tool.finished",
            Self::Usage { .. } => "usage",
            Self::Waiting { .. } => "waiting",
            Self::ApprovalRequested { .. } => "approval.requested",
            Self::ApprovalAnswered { .. } => "approval.answered",
            Self::Retrying { .. } => "retrying",
            Self::AttemptReset { .. } => "attempt_reset",
            Self::ResumeGap { .. } => "resume_gap",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled {} => "cancelled",
        }
    }

    /// Whether no event can follow.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled {})
    }

    /// Whether the event is a piece of text that may be joined with its neighbour of the same kind.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let join = |a: &str, b: &str| format!("{a}{b}");
        match (self, next) {
            (Self::Stdout { text: a }, Self::Stdout { text: b }) => Some(Self::Stdout { text: join(a, b) }),
            (Self::Stderr { text: a }, Self::Stderr { text: b }) => Some(Self::Stderr { text: join(a, b) }),
            (Self::MessageDelta { text: a }, Self::MessageDelta { text: b }) => {
                Some(Self::MessageDelta { text: join(a, b) })
            }
            (Self::ReasoningDelta { text: a }, Self::ReasoningDelta { text: b }) => {
                Some(Self::ReasoningDelta { text: join(a, b) })
            }
            (
                Self::ToolOutput {
                    tool_call_id: x,
                    text: a,
                },
                Self::ToolOutput {
                    tool_call_id: y,
                    text: b,
                },
            ) if x == y => Some(Self::ToolOutput {
                tool_call_id: x.clone(),
                text: join(a, b),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_shape_is_flat_and_named() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let event = Event {
            seq: 7,
            at,
            attempt: 1,
            body: EventBody::Stdout {
                text: "a\0b".to_owned(),
            },
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"seq": 7, "at": "2027-01-15T08:00:00Z", "attempt": 1, "type": "stdout", "text": "a\0b"})
        );
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        let cancelled = Event {
            seq: 8,
            at,
            attempt: 1,
            body: EventBody::Cancelled {},
        };
        let json = serde_json::to_string(&cancelled).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), cancelled);
    }

    #[test]
    fn what_cannot_be_read_keeps_its_number() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (fields, why) in [
            (format!(r#""type": "usage", "usage": {deep}"#), "recursion limit"),
            (r#""type": "newer", "what": 1"#.to_owned(), "unknown variant"),
        ] {
            let json = format!(r#"{{"seq": 7, "at": "2027-01-15T08:00:00Z", "attempt": 2, {fields}}}"#);
            let event = Event::read(json.as_bytes()).unwrap();
            assert_eq!((event.seq, event.attempt), (7, 2));
            let EventBody::Status { phase, detail } = event.body else {
                unreachable!("{why}")
            };
            assert_eq!(phase, "unreadable");
            assert!(detail.as_deref().unwrap().contains(why), "{detail:?}");
        }
        assert!(Event::read(b"{}").is_err());
    }

    #[test]
    fn only_text_of_one_kind_is_joined() {
        let out = |text: &str| EventBody::Stdout { text: text.to_owned() };
        let err = EventBody::Stderr { text: "x".to_owned() };
        assert_eq!(out("a").joined(&out("b")), Some(out("ab")));
        assert_eq!(out("a").joined(&err), None);
        assert_eq!(EventBody::Cancelled {}.joined(&EventBody::Cancelled {}), None);
    }
}
