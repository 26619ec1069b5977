//! Anthropic Messages over HTTP, at any base URL.
//!
//! A client of our own, because metering and retries are the product: it sends each request once, reports usage as it
//! came, and says exactly how a call failed. What goes over the wire is [`wire`], which does no I/O.

pub mod settings;
pub mod wire;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, Url, redirect};
use tokio::time::{Instant, timeout_at};

use super::error::Phase;
use super::{Error, ModelProvider, ModelRequest, ModelStream};
pub use settings::AnthropicSettings;

/// The version of the wire that this client speaks.
const VERSION: &str = "2023-06-01";

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Bytes of an answer that are read; a server that sends more is broken or hostile.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A client of the Anthropic Messages API.
pub struct Anthropic {
    http: reqwest::Client,
    messages: Url,
    headers: HeaderMap,
    settings: AnthropicSettings,
}

impl fmt::Debug for Anthropic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anthropic")
            .field("messages", &self.messages.as_str())
            .finish_non_exhaustive()
    }
}

impl Anthropic {
    /// A client with these settings. Reads the key's file, if one is named.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn new(settings: &AnthropicSettings) -> Result<Self, Error> {
        let messages = settings.messages_url()?;
        let mut headers = HeaderMap::new();
        headers.insert("anthropic-version", HeaderValue::from_static(VERSION));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = settings.resolved_key()? {
            let mut value = HeaderValue::from_str(key.expose())
                .map_err(|_shows_it| settings::fault("api_key has characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert("x-api-key", value);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .redirect(redirect::Policy::none()); // a key goes where it was meant to go, and nowhere else
        if settings::is_loopback(&messages) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| settings::fault(&format!("no HTTP client: {error}")))?;
        Ok(Self {
            http,
            messages,
            headers,
            settings: settings.clone(),
        })
    }

    async fn ask(&self, model: &str, request: &ModelRequest) -> Result<ModelStream, Error> {
        let limit = self.settings.first_byte_timeout;
        let deadline = Instant::now() + limit;
        let body = wire::request::body(model, request);
        let call = self
            .http
            .post(self.messages.clone())
            .headers(self.headers.clone())
            .body(body)
            .send();
        let late = |_| Error::Timeout {
            phase: Phase::FirstByte,
            limit,
        };
        let response = timeout_at(deadline, call)
            .await
            .map_err(late)?
            .map_err(|error| self.not_sent(error))?;
        if !response.status().is_success() {
            return Err(timeout_at(deadline, refusal(response)).await.map_err(late)?);
        }
        if let Some(other) = other_than_a_stream(response.headers()) {
            return Err(Error::Malformed {
                what: format!("an answer of type {other:?} instead of an event stream"),
            });
        }
        let bytes = response
            .bytes_stream()
            .map(|chunk| chunk.map_err(|error| Error::Cut(Some(error.without_url()))));
        let watched = watch(bytes.boxed(), deadline, limit, self.settings.silence_timeout);
        Ok(wire::stream::decode(watched).boxed())
    }

    fn not_sent(&self, error: reqwest::Error) -> Error {
        let error = error.without_url();
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Error::Timeout {
                phase: Phase::Connect,
                limit: self.settings.connect_timeout,
            },
            (true, false) => Error::Connect(error),
            (false, _) => Error::Cut(Some(error)),
        }
    }
}

impl ModelProvider for Anthropic {
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        self.ask(model, request).boxed()
    }
}

/// The content type, when it is another one than an event stream's. Some servers name none.
fn other_than_a_stream(headers: &HeaderMap) -> Option<String> {
    let given = String::from_utf8_lossy(headers.get(CONTENT_TYPE)?.as_bytes()).to_ascii_lowercase();
    (!given.starts_with("text/event-stream")).then_some(given)
}

/// The error of an answer that is not 2xx.
async fn refusal(response: Response) -> Error {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    // What came before the connection broke says more than that it broke.
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() >= ERROR_BYTES_MAX {
            body.truncate(ERROR_BYTES_MAX);
            break;
        }
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Error::Refused(Box::new(wire::error::from_response(status, &header, &body)))
}

/// Passes the bytes on as they come, and ends with an error when they stop coming or never stop.
fn watch(
    bytes: BoxStream<'static, Result<Bytes, Error>>,
    first: Instant,
    first_limit: Duration,
    silence: Duration,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let start = (Some(bytes), Some(first), 0_usize);
    let watched = stream::unfold(start, move |(bytes, first, read)| async move {
        let mut bytes = bytes?;
        let (phase, limit) = match first {
            Some(_) => (Phase::FirstByte, first_limit),
            None => (Phase::NextByte, silence),
        };
        let deadline = first.unwrap_or_else(|| Instant::now() + silence);
        match timeout_at(deadline, bytes.next()).await {
            Err(_elapsed) => Some((Err(Error::Timeout { phase, limit }), (None, None, read))),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(error), (None, None, read))),
            Ok(Some(Ok(chunk))) => {
                let read = read.saturating_add(chunk.len());
                if read > ANSWER_BYTES_MAX {
                    let what = format!("more than {ANSWER_BYTES_MAX} bytes");
                    return Some((Err(Error::Malformed { what }), (None, None, read)));
                }
                Some((Ok(chunk), (Some(bytes), None, read)))
            }
        }
    });
    watched.boxed()
}
