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
pub mod books;
pub mod error;
pub mod event;
pub mod ledger;
mod open;
pub mod openai;
pub mod policy;
pub mod price;
mod refusal;
pub mod request;
pub mod scripted;
pub mod server;
pub mod settings;
mod sse;
mod streamed;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use common::ids::TenantId;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use policy::Account;
use server::{Call, Reply};
use wire::Wire;

pub use answer::Answer;
pub use error::{Class, Error};
pub use event::{ModelEvent, StopReason};
pub(crate) use open::{Ask, Begun, Failed, begin};
pub use open::{Caller, Next, OpenCall, Setback};
pub use policy::{Policy, RetryPolicy};
pub use request::{Attachment, ModelName, ModelRequest, ToolDefinition};
pub use settings::Settings;
pub use streamed::{Opened, open};

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

    /// Sends a call of the provider's own wire as it is, but for the key.
    ///
    /// # Errors
    /// Any of [`Error`].
    fn forward(&self, call: Call) -> BoxFuture<'_, Result<Reply, Error>>;

    /// Whose limits and pauses its calls share.
    fn account(&self) -> &Account;

    /// The wire that it speaks; none when it speaks both.
    fn wire(&self) -> Option<Wire>;

    /// What a request calls the most tokens of its answer.
    fn limit_name(&self) -> &'static str {
        "max_tokens"
    }
}

/// The providers that are set up, by the first part of a model's name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    by_name: Arc<ByName>,
    tenants: Arc<BTreeMap<TenantId, Arc<ByName>>>,
}

type ByName = BTreeMap<String, Arc<dyn ModelProvider>>;

impl Providers {
    /// Exactly these providers.
    pub fn new(providers: impl IntoIterator<Item = (String, Arc<dyn ModelProvider>)>) -> Self {
        Self {
            by_name: Arc::new(providers.into_iter().collect()),
            tenants: Arc::default(),
        }
    }

    /// Everybody's providers, and those of tenants that have their own, each list whole.
    fn of_tenants(everybody: ByName, tenants: BTreeMap<TenantId, ByName>) -> Self {
        let tenants = tenants.into_iter().map(|(id, theirs)| (id, Arc::new(theirs)));
        Self {
            by_name: Arc::new(everybody),
            tenants: Arc::new(tenants.collect()),
        }
    }

    /// The providers that a tenant's models have.
    #[must_use]
    pub fn for_tenant(&self, tenant_id: TenantId) -> Self {
        let theirs = self.tenants.get(&tenant_id).unwrap_or(&self.by_name);
        Self {
            by_name: Arc::clone(theirs),
            tenants: Arc::clone(&self.tenants),
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
