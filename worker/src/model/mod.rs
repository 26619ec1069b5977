//! Models: one seam for every provider, and the policy that all of them share.
//!
//! A [`ModelProvider`] turns a [`ModelRequest`] into a stream of [`ModelEvent`]s. [`open()`] is how a turn asks: it
//! retries and falls back along the agent's list of models, but only before the first token, because what was
//! streamed to a person cannot be taken back in silence. [`Answer`] puts the events together to message parts.
//!
//! # Invariants
//! - One call is one HTTP request: no client here repeats one by itself, which would bill it twice.
//! - Reported usage is a snapshot of one call's running totals; snapshots are merged, never added.
//! - Keys are read from settings or files by the provider and appear in no event, error or log.
//!
//! # Not here
//! The tool loop is [`crate::executor::native`]; whether a failed turn is tried again is decided when it settles.

pub mod answer;
pub mod anthropic;
pub mod error;
pub mod event;
mod open;
pub mod request;
pub mod retry;
pub mod scripted;
pub mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub use answer::Answer;
pub use error::{Class, Error};
pub use event::{ModelEvent, StopReason};
pub use open::{Next, Opened, Setback, open};
pub use request::{ModelName, ModelRequest, ToolDefinition};
pub use retry::RetryPolicy;
pub use settings::Settings;

/// The events of one answer, in order. It ends after [`ModelEvent::End`] or after the first error.
pub type ModelStream = BoxStream<'static, Result<ModelEvent, Error>>;

/// Somebody who runs models.
pub trait ModelProvider: Send + Sync + fmt::Debug {
    /// Asks `model`, the name without the provider, and returns when the provider began to answer.
    ///
    /// Dropping the future or the stream ends the call.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing was streamed then.
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>>;
}

/// The providers that are set up, by the first part of a model's name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    by_name: Arc<BTreeMap<String, Arc<dyn ModelProvider>>>,
}

impl Providers {
    /// Exactly these providers.
    pub fn new(providers: impl IntoIterator<Item = (String, Arc<dyn ModelProvider>)>) -> Self {
        Self {
            by_name: Arc::new(providers.into_iter().collect()),
        }
    }

    /// The provider of `model`.
    ///
    /// # Errors
    /// [`Error::UnknownProvider`] when it is not set up here.
    pub fn of(&self, model: &ModelName) -> Result<&dyn ModelProvider, Error> {
        let provider = self.by_name.get(model.provider());
        provider
            .map(|provider| &**provider)
            .ok_or_else(|| Error::UnknownProvider {
                provider: model.provider().to_owned(),
                known: self.names().collect::<Vec<_>>().join(", "),
            })
    }

    /// The names of the providers that are set up.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}
