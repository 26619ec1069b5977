//! Anthropic Messages over HTTP, at any base URL.
//!
//! What goes over the wire is [`wire`], which does no I/O; how it goes there is [`crate::model::server`].

pub mod wire;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::policy::Account;
use super::server::{Call, Reply, Server, ServerSettings};
use super::wire::{Decoder, Route, Wire};
use super::{Error, ModelProvider, ModelRequest, ModelStream, sse};

/// A client of the Anthropic Messages API.
#[derive(Debug)]
pub struct Anthropic {
    server: Server,
}

impl Anthropic {
    /// A client with these settings. Reads the key's file, if one is named.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn new(settings: &ServerSettings) -> Result<Self, Error> {
        Self::named("anthropic", settings)
    }

    /// The same under another provider's name.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn named(provider: &str, settings: &ServerSettings) -> Result<Self, Error> {
        let server = Server::new(provider, Wire::Anthropic, settings)?;
        Ok(Self { server })
    }
}

impl ModelProvider for Anthropic {
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        let call = Call {
            route: Route::Messages,
            headers: vec![("accept".to_owned(), "text/event-stream".to_owned())],
            body: wire::request::body(model, request).into(),
            is_streamed: true,
        };
        async move { streamed(self.server.send(call).await?, Wire::Anthropic) }.boxed()
    }

    fn forward(&self, call: Call) -> BoxFuture<'_, Result<Reply, Error>> {
        self.server.send(call).boxed()
    }

    fn account(&self) -> &Account {
        self.server.account()
    }

    fn wire(&self) -> Option<Wire> {
        Some(Wire::Anthropic)
    }
}

/// The events of an answer that must be a stream. Some servers name no type at all.
pub(super) fn streamed(reply: Reply, wire: Wire) -> Result<ModelStream, Error> {
    if reply.is_stream() || reply.content_type.is_empty() {
        return Ok(sse::decode(reply.body, Decoder::new(wire)).boxed());
    }
    Err(Error::Malformed {
        what: format!("an answer of type {:?} instead of an event stream", reply.content_type),
    })
}
