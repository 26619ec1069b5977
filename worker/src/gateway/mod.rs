//! The model gateway: how programs in a sandbox reach a model.
//!
//! On a loopback port of the sandbox stands what looks like a provider, in both wires. Requests come out through the
//! pipe by which the sandbox is driven; here they are checked, given the provider's key and passed on.
//!
//! # Invariants
//! - No key of a provider is in anything that goes into the sandbox, whatever the provider says: it is taken out where
//!   its words come in ([`crate::model::server`]). The program has a token that is good for one attempt, through that
//!   attempt's own tunnels.
//! - What is checked is what is sent: a body that two readers could understand in two ways is refused.
//! - A request goes byte for byte but for the model's name, where the program gave it with its provider, and the wish
//!   for usage on the wire of Chat Completions. An answer comes byte for byte but for that key, and the usage that only the
//!   gateway asked for.
//! - What requests cost the worker is bounded: bytes and values of each, and bytes of all that are under way.
//! - Every call that a provider counted is written down, whether the program stays to read it or not.
//!
//! # Not here
//! What the wires mean is [`crate::model`]; everything else that a program may reach is [`crate::egress`].

mod account;
mod answer;
mod call;
mod check;
mod frames;
mod rehearsal;
mod room;
mod serve;
mod splice;
mod strict;
mod tally;
mod tokens;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::job::Failure;
use common::message::Usage;
use futures_util::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::executor::native::TurnSink;
use crate::model::ledger::Spent;
use crate::model::wire::{Route, Wire};
use crate::model::{Caller, ModelName};
use crate::sandbox::{Sandbox, Tunnel};
use account::Account;
use answer::Refusal;
use call::{Answered, Content, Means};
use check::{Asked, Named};
use room::Share;
use serve::Body;
use tokens::{Bearer, Tokens};

pub use hothouse_protocol::GATEWAY_PORT;
pub use rehearsal::rehearse;
pub use room::Room;

/// Longest request, bytes: what providers take.
const BODY_MAX: usize = 32 << 20;

/// How long a request may take to come: what holds room must not do so for ever.
const BODY_TIMEOUT: Duration = Duration::from_mins(2);

/// Calls of one attempt at once; each may hold a request in memory.
const CALLS_MAX: usize = 16;

/// Headers that go on to the provider.
const PASSED: [&str; 2] = ["anthropic-version", "anthropic-beta"];

/// What an attempt may ask models for.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The agent's models, in order of preference.
    pub models: Vec<ModelName>,
    /// What requests may use beyond the model itself.
    pub features: Vec<String>,
    /// With what models are called.
    pub caller: Caller,
    /// Whether a call is made for a shorter answer where a budget has not enough left for the one that it asks for.
    pub shrinks: bool,
    /// Where requests are held, with those of the worker's other attempts.
    pub room: Room,
}

/// A new token. No gateway accepts it before it is that of an attempt.
pub fn token() -> String {
    format!("hothouse-{}", hex::encode(rand::random::<[u8; 32]>()))
}

/// The variables by which client libraries with this token find the gateway.
pub fn variables(token: &str) -> Vec<(String, String)> {
    let root = format!("http://127.0.0.1:{GATEWAY_PORT}");
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        named("ANTHROPIC_BASE_URL", &root),
        named("ANTHROPIC_API_KEY", token),
        named("OPENAI_BASE_URL", &format!("{root}/v1")),
        named("OPENAI_API_KEY", token),
    ]
}

/// The gateway of one attempt.
pub struct Gateway {
    tokens: Tokens,
    terms: Terms,
    account: Arc<Account>,
    calls: Semaphore,
    share: Share,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway with a token of its own; `sink` hears what calls use.
    pub fn new(terms: Terms, sink: Arc<dyn TurnSink>) -> Self {
        Self {
            tokens: Tokens::new(token()),
            share: Share::of(terms.room.clone()),
            terms,
            account: Arc::new(Account::new(sink)),
            calls: Semaphore::new(CALLS_MAX),
        }
    }

    /// What a program presents as its key.
    pub fn token(&self) -> &str {
        self.tokens.own()
    }

    /// Accepts the token of a process that was started before this attempt, until the attempt is over. It is good through
    /// this attempt's own tunnels alone, as the attempt's own is, and what it is used for is this attempt's. There is one
    /// such process in an attempt's life.
    pub fn bind(&self, token: &str) {
        self.tokens.bind(token);
    }

    /// Accepts that token no longer, unless a model was called with it. True when none was, and so none will be.
    pub fn unbind(&self) -> bool {
        self.tokens.unbind()
    }

    /// The first model whose provider speaks Anthropic Messages.
    pub fn anthropic_model(&self) -> Option<&ModelName> {
        self.terms.models.iter().find(|name| self.speaks(name, Wire::Anthropic))
    }

    fn speaks(&self, name: &ModelName, wire: Wire) -> bool {
        // Of one that is not set up the error says so.
        let provider = self.terms.caller.providers.of(name);
        provider.map_or(true, |provider| provider.wire().is_none_or(|theirs| theirs == wire))
    }

    /// Why a call was not made, when one did not fit into a budget.
    pub fn over_budget(&self) -> Option<Failure> {
        self.account.over_budget()
    }

    /// What all calls so far used.
    pub fn usage(&self) -> Usage {
        self.account.total()
    }

    /// Waits until every call that has ended is written down, and answers what they cost.
    pub async fn spent(&self) -> Spent {
        self.terms.caller.ledger.end().await
    }

    /// The variables by which client libraries find the gateway.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut variables = variables(self.token());
        if let Some(model) = self.terms.models.first() {
            variables.push(("HOTHOUSE_MODEL".to_owned(), model.model().to_owned()));
        }
        variables
    }

    /// Serves the tunnels of a sandbox that has no other way out, until it is dropped, which closes them.
    pub async fn serve(&self, sandbox: &Sandbox) -> Infallible {
        match sandbox.tunnels() {
            Some(tunnels) => tunnels.serve(|tunnel| self.connection(tunnel).boxed()).await,
            None => std::future::pending().await,
        }
    }

    /// Serves one connection of a program to its end. One to another port than the gateway's is closed.
    pub async fn connection(&self, tunnel: Tunnel) {
        if tunnel.port == GATEWAY_PORT {
            serve::connection(tunnel, |request| self.answer(request)).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let route = Route::of(request.method().as_str(), request.uri().path());
        let answered = async {
            let bearer = self.tokens.check(request.headers())?;
            match route {
                None => Err(Refusal::new(
                    404,
                    "not_found_error",
                    "there is no such route at this gateway",
                )),
                Some(Route::Models) => Ok(Answered {
                    status: 200,
                    content_type: "application/json".to_owned(),
                    request_id: None,
                    body: Content::Whole(answer::models(&self.terms.models)),
                }),
                Some(route) => self.call((route, bearer), request).await,
            }
        };
        match answered.await {
            Ok(answered) => good(answered),
            Err(refusal) => bad(&refusal, route),
        }
    }

    async fn call(&self, (route, bearer): (Route, Bearer), request: Request<Incoming>) -> Result<Answered, Refusal> {
        let _place = self.calls.try_acquire().map_err(|_full| Refusal {
            may_retry: true,
            retry_after_s: Some(1),
            ..Refusal::new(429, "rate_limit_error", format!("more than {CALLS_MAX} calls at once"))
        })?;
        if request.headers().contains_key(CONTENT_ENCODING) {
            return Err(Refusal::new(
                415,
                "invalid_request_error",
                "send the body without Content-Encoding",
            ));
        }
        let passed = PASSED.iter().filter_map(|name| {
            let value = request.headers().get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), value.to_owned()))
        });
        let headers = passed.collect();
        let body = request.into_body();
        // One that does not say how long it is may have any length.
        let len = body.size_hint().exact().and_then(|len| usize::try_from(len).ok());
        let _room = self.share.take(len.unwrap_or(BODY_MAX).min(BODY_MAX)).await?;
        let body = read(body).await?;
        let asked = self.check(route, &body).await?;
        let models = self.models(&asked.model, route)?;
        let shrinks = self.terms.shrinks && route == Route::Messages && asked.names_limit;
        let request = call::Request {
            route,
            asked,
            headers,
            body,
            models,
            shrinks,
        };
        let means = Means {
            caller: &self.terms.caller,
            account: &self.account,
        };
        // The body may have taken its time.
        self.tokens.calls(bearer)?;
        call::make(&request, means).await
    }

    async fn check(&self, route: Route, body: &Bytes) -> Result<Asked, Refusal> {
        if body.len() <= room::SHORT {
            return checked(route, body, &self.terms.features);
        }
        let (body, features) = (body.clone(), self.terms.features.clone());
        self.share.read(move || checked(route, &body, &features)).await?
    }

    /// The agent's models from the one that is asked for on, as far as their providers speak the route's wire.
    fn models(&self, asked: &str, route: Route) -> Result<Vec<&ModelName>, Refusal> {
        let listed = &self.terms.models;
        let wire = if route == Route::ChatCompletions {
            Wire::OpenAi
        } else {
            Wire::Anthropic
        };
        let speaks = |name: &&ModelName| self.speaks(name, wire);
        let is_it = |name: &ModelName| name.model() == asked || name.to_string() == asked;
        let Some(at) = listed.iter().position(|name| is_it(name) && speaks(&name)) else {
            let names: Vec<String> = listed.iter().map(ToString::to_string).collect();
            let what = if listed.iter().any(is_it) {
                "does not answer on this route"
            } else {
                "is not the agent's"
            };
            let message = format!(
                "the model {asked:?} {what}; the agent's models are: {}",
                names.join(", ")
            );
            return Err(Refusal::new(404, "not_found_error", message));
        };
        Ok(listed.iter().skip(at).filter(speaks).collect())
    }
}

fn checked(route: Route, body: &[u8], features: &[String]) -> Result<Asked, Refusal> {
    let malformed = |error: serde_json::Error| Refusal::new(400, "invalid_request_error", error.to_string());
    let parsed = strict::parse(body).map_err(malformed)?;
    Ok(check::check(route, &parsed, Named(features))?)
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let late = |_elapsed| {
        let message = format!("the request took longer than {BODY_TIMEOUT:?} to come");
        Refusal::new(408, "timeout_error", message)
    };
    let read = timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect());
    match read.await.map_err(late)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the request is longer than {BODY_MAX} bytes");
            Err(Refusal::new(413, "request_too_large", message))
        }
        Err(error) => Err(Refusal::new(400, "invalid_request_error", error.to_string())),
    }
}

fn good(answered: Answered) -> Response<Body> {
    let body = match answered.body {
        Content::Whole(bytes) => whole(bytes),
        Content::Stream(stream) => StreamBody::new(stream.map(|bytes| bytes.map(Frame::data))).boxed_unsync(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answered.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    let texts = [
        ("request-id", answered.request_id),
        ("content-type", Some(answered.content_type)),
    ];
    for (name, value) in texts {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    response
}

fn bad(refusal: &Refusal, route: Option<Route>) -> Response<Body> {
    let mut response = Response::new(whole(refusal.body(route)));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let advice = if refusal.may_retry { "true" } else { "false" };
    headers.insert("x-should-retry", HeaderValue::from_static(advice));
    if let Some(seconds) = refusal.retry_after_s {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
