//! What a model is asked, in one shape for all providers.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::message::{Message, Part};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;

/// A model by its full name, `provider/model`. The model's own name may contain more slashes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName {
    provider: String,
    model: String,
}

impl ModelName {
    /// Who runs it: `anthropic`.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// What the provider calls it.
    pub fn model(&self) -> &str {
        &self.model
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name.split_once('/') {
            Some((provider, model)) if is_word(provider) && is_word(model) => Ok(Self {
                provider: provider.to_owned(),
                model: model.to_owned(),
            }),
            _ => Err(Error::Name { name: name.to_owned() }),
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())
}

impl TryFrom<String> for ModelName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One call of a model. Which model is asked is told apart, because the same request may go to several in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRequest {
    /// The agent's instructions; empty for none.
    pub system: String,
    /// The conversation so far, as [`common::message::repair`] leaves it, ending with the user.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Vec<ToolDefinition>,
    /// Most tokens of the answer.
    pub max_output_tokens: u32,
    /// Randomness, 0 to 1; the provider's default when none.
    pub temperature: Option<f32>,
    /// Texts at which the model stops.
    pub stop_sequences: Vec<String>,
    /// Images among the files that messages name, by their path: the model sees them. Of other files it sees the name.
    pub attachments: BTreeMap<String, Attachment>,
}

/// An image that the model sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
    pub media_type: String,
    /// The file.
    pub data: Bytes,
}

impl Attachment {
    /// The file as text.
    pub fn base64(&self) -> String {
        STANDARD.encode(&self.data)
    }

    /// The file as a URL.
    pub fn data_url(&self) -> String {
        format!("data:{};base64,{}", self.media_type, self.base64())
    }

    /// What stands for a file that the model does not see.
    pub fn named(path: &str, media_type: Option<&str>) -> String {
        let kind = media_type.map(|kind| format!(" ({kind})")).unwrap_or_default();
        format!("[File in the workspace: {path}{kind}]")
    }
}

impl ModelRequest {
    /// A request of these messages and nothing else.
    pub fn of(messages: Vec<Message>, max_output_tokens: u32) -> Self {
        Self {
            system: String::new(),
            messages,
            tools: Vec::new(),
            max_output_tokens,
            temperature: None,
            stop_sequences: Vec::new(),
            attachments: BTreeMap::new(),
        }
    }

    /// The agent's instructions, when there are any.
    pub fn instructions(&self) -> Option<&str> {
        (!self.system.trim().is_empty()).then_some(self.system.as_str())
    }

    /// Bytes of everything that the model reads. No tokenizer makes more tokens of a text than it has bytes.
    pub fn bytes(&self) -> u64 {
        let of_part = |part: &Part| match part {
            Part::Text { text } => text.len(),
            Part::Reasoning {
                text,
                signature,
                redacted,
                ..
            } => text.len() + signature.as_ref().map_or(0, String::len) + redacted.as_ref().map_or(0, String::len),
            Part::ToolCall { id, name, input } => id.len() + name.len() + input.to_string().len(),
            Part::ToolResult {
                tool_call_id, output, ..
            } => tool_call_id.len() + output.len(),
            Part::File { path, .. } => path.len() + self.attachments.get(path).map_or(64, |file| file.data.len()),
            Part::Status { .. } => 0,
        };
        // Some for what the wire puts around each.
        let parts = self.messages.iter().flat_map(|message| &message.parts);
        let messages: usize = parts.map(|part| of_part(part) + 16).sum();
        let tools: usize = self
            .tools
            .iter()
            .map(|tool| tool.name.len() + tool.description.len() + tool.input_schema.to_string().len() + 16)
            .sum();
        u64::try_from(self.system.len() + messages + tools + 64).unwrap_or(u64::MAX)
    }
}

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolDefinition {
    /// Its name.
    pub name: String,
    /// When and how to use it, for the model.
    pub description: String,
    /// JSON Schema of its input, an object.
    pub input_schema: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_at_its_first_slash() {
        let name: ModelName = "openai/meta/llama-3".parse().unwrap();
        assert_eq!((name.provider(), name.model()), ("openai", "meta/llama-3"));
        assert_eq!(name.to_string(), "openai/meta/llama-3");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "",
            "claude",
            "/claude",
            "anthropic/",
            "anthropic/a b",
            "anth ropic/x",
            "a/\u{0}",
        ] {
            assert!(name.parse::<ModelName>().is_err(), "{name:?}");
            assert!(serde_json::from_value::<ModelName>(name.into()).is_err(), "{name:?}");
        }
    }
}
