//! The two wire formats and their four routes: what clients, the gateway and the scripted server agree on.

pub(super) mod request;

use common::message::Usage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Error, ModelEvent, anthropic, openai};

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI Chat Completions.
    OpenAi,
}

/// What is asked of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `GET /v1/models`.
    Models,
}

impl Route {
    /// Every route.
    pub const ALL: [Self; 4] = [Self::Messages, Self::CountTokens, Self::ChatCompletions, Self::Models];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Models => "/v1/models",
        }
    }

    /// Its HTTP method.
    pub fn method(self) -> &'static str {
        match self {
            Self::Models => "GET",
            Self::Messages | Self::CountTokens | Self::ChatCompletions => "POST",
        }
    }

    /// The route of a method and a path, which may carry a query.
    pub fn of(method: &str, path: &str) -> Option<Self> {
        let path = path.split('?').next().unwrap_or_default();
        Self::ALL
            .into_iter()
            .find(|route| route.path() == path && route.method() == method)
    }

    /// Whether a model answers, so that tokens are counted.
    pub fn is_answered_by_a_model(self) -> bool {
        matches!(self, Self::Messages | Self::ChatCompletions)
    }
}

/// Reads the events of one answer, whatever its wire.
#[derive(Debug)]
pub enum Decoder {
    /// Of Anthropic Messages.
    Anthropic(anthropic::wire::event::Decoder),
    /// Of OpenAI Chat Completions.
    OpenAi(openai::wire::event::Decoder),
}

impl Decoder {
    /// One that has read nothing.
    pub fn new(wire: Wire) -> Self {
        match wire {
            Wire::Anthropic => Self::Anthropic(anthropic::wire::event::Decoder::default()),
            Wire::OpenAi => Self::OpenAi(openai::wire::event::Decoder::default()),
        }
    }

    /// Whether the answer is over, so that nothing more is to be read.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Anthropic(decoder) => decoder.is_over(),
            Self::OpenAi(decoder) => decoder.is_over(),
        }
    }

    /// Takes in the data of one event.
    ///
    /// # Errors
    /// [`Error::Refused`] when the event is an error, [`Error::Malformed`] when it cannot be read.
    pub fn event(&mut self, data: &str) -> Result<Vec<ModelEvent>, Error> {
        match self {
            Self::Anthropic(decoder) => decoder.event(data),
            Self::OpenAi(decoder) => decoder.event(data),
        }
    }

    /// The last event, once the bytes have ended without saying that the answer is over.
    ///
    /// # Errors
    /// [`Error::Cut`] when the answer was not over.
    pub fn end(&mut self) -> Result<ModelEvent, Error> {
        match self {
            Self::Anthropic(decoder) => decoder.end(),
            Self::OpenAi(decoder) => decoder.end(),
        }
    }
}

impl Wire {
    /// What an answer that is one JSON document reports as used; none when it reports nothing.
    pub fn usage_of(self, answer: &Value) -> Option<Usage> {
        let usage = &answer["usage"];
        usage.is_object().then(|| match self {
            Self::Anthropic => anthropic::wire::event::usage(usage),
            Self::OpenAi => openai::wire::event::usage(usage),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_route_is_known_by_method_and_path() {
        assert_eq!(Route::of("POST", "/v1/messages?beta=true"), Some(Route::Messages));
        assert_eq!(Route::of("GET", "/v1/messages"), None);
        assert_eq!(Route::of("GET", "/v1/models"), Some(Route::Models));
        assert_eq!(Route::of("POST", "/v1/messages/batches"), None);
    }

    #[test]
    fn both_wires_count_the_same_call_the_same() {
        let anthropic = json!({"usage": {"input_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 5, "output_tokens": 7}});
        let openai = json!({"usage": {"prompt_tokens": 10, "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 5}}});
        let counted = Wire::Anthropic.usage_of(&anthropic).unwrap();
        assert_eq!((counted.input_tokens, counted.output_tokens), (10, 7));
        assert_eq!(Wire::OpenAi.usage_of(&openai), Some(counted));
        assert_eq!(Wire::OpenAi.usage_of(&json!({})), None);
    }
}
