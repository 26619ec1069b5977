//! One server with one key: how every wire goes over HTTP, and nothing of what it means.
//!
//! A client of our own, because metering and retries are the product: it sends each request once, passes on what comes
//! as it comes, and says exactly how a call failed.

mod secret;
mod settings;
mod watch;

use std::fmt;

use bytes::Bytes;
use common::config::Secret;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, Url, redirect};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use super::error::Phase;
use super::policy::Account;
use super::wire::{Route, Wire};
use super::{Error, refusal};
use secret::Unsaid;
pub use settings::ServerSettings;

/// The version of Anthropic's wire that is spoken when a caller names none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// The bytes of an answer, as they come.
pub type Bytestream = BoxStream<'static, Result<Bytes, Error>>;

/// A call as it goes over the wire, but for the key.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is asked.
    pub route: Route,
    /// Headers beside those that every call has: `anthropic-version`, `anthropic-beta` and the like.
    pub headers: Vec<(String, String)>,
    /// The body, passed on byte for byte.
    pub body: Bytes,
    /// Whether the answer comes while it is written. One that does not has its first byte when it is whole.
    pub is_streamed: bool,
}

/// An answer that began well.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Reply {
    /// Its HTTP status, 2xx.
    pub status: u16,
    /// The type of its body; empty when the server names none.
    pub content_type: String,
    /// The server's name of the request.
    pub request_id: Option<String>,
    /// Its body.
    pub body: Bytestream,
}

impl Reply {
    /// Whether the body is a stream of events.
    pub fn is_stream(&self) -> bool {
        self.content_type.starts_with("text/event-stream")
    }
}

/// A server.
pub struct Server {
    http: reqwest::Client,
    root: Url,
    headers: HeaderMap,
    wire: Wire,
    settings: ServerSettings,
    account: Account,
    unsaid: Unsaid,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("root", &self.root.as_str())
            .field("wire", &self.wire)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A client with these settings, for the provider of this name. Reads the key's file, if one is named.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn new(provider: &str, wire: Wire, settings: &ServerSettings) -> Result<Self, Error> {
        let root = settings.root(provider, wire)?;
        let key = settings.resolved_key(provider)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = &key {
            let (name, text) = match wire {
                Wire::Anthropic => (HeaderName::from_static("x-api-key"), key.expose().to_owned()),
                Wire::OpenAi => (reqwest::header::AUTHORIZATION, format!("Bearer {}", key.expose())),
            };
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_shows_it| settings::fault(provider, "api_key has characters that no key has"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .tcp_nodelay(true)
            .redirect(redirect::Policy::none()); // a key goes where it was meant to go, and nowhere else
        if settings::is_loopback(&root) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| settings::fault(provider, &format!("no HTTP client: {error}")))?;
        let digest = Sha256::new()
            .chain_update(provider)
            .chain_update([0])
            .chain_update(root.as_str())
            .chain_update([0])
            .chain_update(key.as_ref().map_or("", |key| key.expose()))
            .finalize();
        let account = Account {
            name: format!("{provider}:{}", hex::encode(&digest[..6])),
            calls_max: settings.calls_max,
            tokens_per_minute: settings.tokens_per_minute,
        };
        Ok(Self {
            http,
            root,
            headers,
            wire,
            settings: settings.clone(),
            account,
            unsaid: Unsaid::new(key.as_ref().map(Secret::expose)),
        })
    }

    /// What it speaks.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Whose limits its calls share.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Whether it is the provider's own public server.
    pub fn is_public(&self) -> bool {
        self.settings.is_public(self.wire)
    }

    /// Sends a call once and answers when the answer began.
    ///
    /// # Errors
    /// Any of [`Error`] but those about models' names.
    pub async fn send(&self, call: Call) -> Result<Reply, Error> {
        let (phase, limit) = if call.route.is_answered_by_a_model() && !call.is_streamed {
            (Phase::Answer, self.settings.answer_timeout)
        } else {
            (Phase::FirstByte, self.settings.first_byte_timeout)
        };
        let deadline = Instant::now() + limit;
        let late = |_| Error::Timeout { phase, limit };
        let mut response = timeout_at(deadline, self.request(call).send())
            .await
            .map_err(late)?
            .map_err(|error| self.not_sent(error))?;
        self.unsaid.clean(response.headers_mut());
        if !response.status().is_success() {
            return Err(timeout_at(deadline, self.refused(response)).await.map_err(late)?);
        }
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let content_type = header("content-type").unwrap_or_default().to_ascii_lowercase();
        let request_id = header("request-id").or_else(|| header("x-request-id"));
        let status = response.status().as_u16();
        let bytes = self.body_of(response);
        let first = (deadline, Error::Timeout { phase, limit });
        let body = watch::watch(bytes, first, self.settings.silence_timeout);
        Ok(Reply {
            status,
            content_type,
            request_id,
            body,
        })
    }

    fn request(&self, call: Call) -> reqwest::RequestBuilder {
        let method = match call.route {
            Route::Models => Method::GET,
            _ => Method::POST,
        };
        let mut headers = HeaderMap::new();
        if self.wire == Wire::Anthropic {
            headers.insert("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
        }
        for (name, value) in &call.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
        // The key comes last: no caller's header replaces it.
        headers.extend(self.headers.clone());
        let mut request = self.http.request(method, joined(&self.root, call.route));
        if call.route != Route::Models {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request = request.body(call.body);
        }
        request.headers(headers)
    }

    fn body_of(&self, response: Response) -> Bytestream {
        let bytes = response
            .bytes_stream()
            .map(|chunk| chunk.map_err(|error| Error::Cut(Some(error.without_url()))));
        self.unsaid.cleaned(bytes.boxed())
    }

    /// The error of an answer that is not 2xx.
    async fn refused(&self, response: Response) -> Error {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let mut body = Vec::new();
        let mut chunks = self.body_of(response);
        // What came before the connection broke says more than that it broke.
        while let Some(Ok(chunk)) = chunks.next().await {
            body.extend_from_slice(&chunk);
            if body.len() >= ERROR_BYTES_MAX {
                body.truncate(ERROR_BYTES_MAX);
                break;
            }
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Error::Refused(Box::new(refusal::from_response(status, &header, &body)))
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

/// Where a route is below a root.
fn joined(root: &Url, route: Route) -> Url {
    let mut url = root.clone();
    url.set_path(&format!("{}{}", root.path().trim_end_matches('/'), route.path()));
    url
}
