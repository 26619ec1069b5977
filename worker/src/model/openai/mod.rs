//! OpenAI Chat Completions over HTTP, at any base URL: OpenAI, Ollama, vLLM, LM Studio, llama.cpp and their like.
//!
//! What goes over the wire is [`wire`], which does no I/O; how it goes there is [`crate::model::server`].

pub mod wire;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::anthropic::streamed;
use super::policy::Account;
use super::server::{Call, Reply, Server, ServerSettings};
use super::wire::{Route, Wire};
use super::{Error, ModelProvider, ModelRequest, ModelStream};

/// A client of the Chat Completions API.
#[derive(Debug)]
pub struct OpenAi {
    server: Server,
}

impl OpenAi {
    /// A client with these settings, for the provider of this name. Reads the key's file, if one is named.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn new(provider: &str, settings: &ServerSettings) -> Result<Self, Error> {
        let server = Server::new(provider, Wire::OpenAi, settings)?;
        Ok(Self { server })
    }

    fn dialect(&self) -> wire::request::Dialect {
        wire::request::Dialect {
            is_public: self.server.is_public(),
        }
    }
}

impl ModelProvider for OpenAi {
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        let call = Call {
            route: Route::ChatCompletions,
            headers: vec![("accept".to_owned(), "text/event-stream".to_owned())],
            body: wire::request::body(model, request, self.dialect()).into(),
            is_streamed: true,
        };
        async move { streamed(self.server.send(call).await?, Wire::OpenAi) }.boxed()
    }

    fn forward(&self, call: Call) -> BoxFuture<'_, Result<Reply, Error>> {
        self.server.send(call).boxed()
    }

    fn account(&self) -> &Account {
        self.server.account()
    }

    fn wire(&self) -> Option<Wire> {
        Some(Wire::OpenAi)
    }

    fn limit_name(&self) -> &'static str {
        self.dialect().limit_name()
    }
}
