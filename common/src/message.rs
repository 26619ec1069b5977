//! Messages: what a conversation is made of.
//!
//! A conversation is an ordered list of [`Message`]s, each a list of typed [`Part`]s. The shape is that of the HTTP API
//! and of the stored rows alike, so a message is written once and read everywhere. The results of tool calls are parts
//! of a message with role `user` directly after the message that made the calls, as both provider formats want it.
//!
//! # Not here
//! What a provider's wire looks like is `worker::model`; making any history valid for a model call is [`repair()`].

mod repair;
mod usage;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{JobId, MessageId};

pub use repair::{MISSING_RESULT, repair};
pub use usage::Usage;

/// Who a message is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A person, or the results of tools.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// A time-ordered id; nil for a message that [`repair()`] put in, which is never stored.
    pub id: MessageId,
    /// Who it is from.
    pub role: Role,
    /// What it says, in order.
    pub parts: Vec<Part>,
    /// The job that wrote it; none for what a user sent.
    #[serde(default)]
    pub job_id: Option<JobId>,
    /// What the model call behind it used; none for what a user sent.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// When it was finished.
    pub created_at: DateTime<Utc>,
}

impl Message {
    /// A new message with a fresh id.
    pub fn new(role: Role, parts: Vec<Part>, created_at: DateTime<Utc>) -> Self {
        Self {
            id: MessageId::new(),
            role,
            parts,
            job_id: None,
            usage: None,
            created_at,
        }
    }

    /// A user's message of one text.
    pub fn user(text: impl Into<String>, created_at: DateTime<Utc>) -> Self {
        Self::new(Role::User, vec![Part::text(text)], created_at)
    }

    /// The texts of this message, joined by blank lines; reasoning, tool calls and their results are left out.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.parts.iter().filter_map(Part::as_text).collect();
        texts.join("\n\n")
    }

    /// The tool calls of this message, in order, as (id, name).
    pub fn tool_calls(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parts.iter().filter_map(|part| match part {
            Part::ToolCall { id, name, .. } => Some((id.as_str(), name.as_str())),
            _ => None,
        })
    }
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Plain text or Markdown.
    Text {
        /// The text.
        text: String,
    },
    /// What the model thought before it answered.
    Reasoning {
        /// The readable part; empty when the provider keeps it to itself.
        #[serde(default)]
        text: String,
        /// What the provider wants back unchanged with it, so that it recognises its own reasoning.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
        /// Reasoning that the provider encrypted as a whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        redacted: Option<String>,
        /// The provider that wrote it (`anthropic`): it means nothing to any other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider: Option<String>,
    },
    /// The model asks for a tool.
    ToolCall {
        /// Names the call; its result repeats it.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments, an object.
        input: Value,
    },
    /// What a tool answered.
    ToolResult {
        /// The call that it answers.
        tool_call_id: String,
        /// Whether the tool failed.
        #[serde(default)]
        is_error: bool,
        /// What it printed or said.
        output: String,
    },
    /// A file of the conversation's workspace.
    File {
        /// Its path in the workspace.
        path: String,
        /// Its media type, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        media_type: Option<String>,
        /// Its length in bytes, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
    },
    /// A note for people, such as "cancelled"; no model sees it.
    Status {
        /// The note.
        text: String,
    },
}

impl Part {
    /// A text part.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// The text of a text part.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(text),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_part_has_its_name_on_the_wire_and_comes_back_equal() {
        let wire = json!([
            {"type": "text", "text": "hello"},
            {"type": "reasoning", "text": "hm", "signature": "s", "provider": "anthropic"},
            {"type": "tool_call", "id": "c1", "name": "bash", "input": {"command": "ls"}},
            {"type": "tool_result", "tool_call_id": "c1", "is_error": true, "output": "no"},
            {"type": "file", "path": "out/a.png", "media_type": "image/png", "bytes": 3},
            {"type": "status", "text": "cancelled"},
        ]);
        let parts: Vec<Part> = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(serde_json::to_value(&parts).unwrap(), wire);
    }

    #[test]
    fn a_message_on_the_wire_has_the_fields_of_the_contract() {
        let message = Message::user("hi", DateTime::UNIX_EPOCH);
        let wire = serde_json::to_value(&message).unwrap();
        assert_eq!(
            wire,
            json!({"id": message.id, "role": "user", "parts": [{"type": "text", "text": "hi"}], "job_id": null,
                   "usage": null, "created_at": "1970-01-01T00:00:00Z"})
        );
        assert_eq!(serde_json::from_value::<Message>(wire).unwrap(), message);
    }

    #[test]
    fn the_text_of_a_message_leaves_out_what_is_not_said() {
        let parts = vec![
            Part::text("one"),
            Part::ToolCall {
                id: "a".to_owned(),
                name: "bash".to_owned(),
                input: json!({}),
            },
            Part::text("two"),
        ];
        let message = Message::new(Role::Assistant, parts, DateTime::UNIX_EPOCH);
        assert_eq!(message.text(), "one\n\ntwo");
        assert_eq!(message.tool_calls().collect::<Vec<_>>(), [("a", "bash")]);
    }
}
