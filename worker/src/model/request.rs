//! What a model is asked, in one shape for all providers.

use std::fmt;
use std::str::FromStr;

use common::message::Message;
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
