//! The HTTP client: one [`Client`] for all commands.
//!
//! Every call has a time limit; [`send`] says which are repeated, and when.

mod error;
mod follow;
mod job;
mod key;
mod log;
mod problem;
mod send;
mod sse;

use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

pub(crate) use self::error::Error;
pub(crate) use self::follow::{Event, Follower};
pub(crate) use self::job::{Attempt, Job, JobState, Page};
pub(crate) use self::log::LogPages;
use self::send::Repeat;
use crate::globals::Globals;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Talks to one server as one caller.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: Url,
    /// `Bearer …`.
    authorization: Option<SecretString>,
    tenant: Option<String>,
    /// Has the server ever answered? Until then a refused connection means that there is none.
    was_reached: AtomicBool,
}

impl Client {
    /// How long one call waits for the server's answer.
    pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);
    /// Rows asked for at once.
    pub(crate) const PAGE_ROWS: usize = 200;
    /// How long a repeatable call goes on being repeated.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

    /// A client for the server and caller that the options name.
    ///
    /// # Errors
    /// [`Error::BadServer`] for an address that is not HTTP, [`Error::KeyFile`] for a key file that cannot be read.
    pub(crate) fn new(globals: &Globals) -> Result<Self, Error> {
        let server = parse_server(&globals.server)?;
        let key = match &globals.key {
            Some(key) => Some(key.clone()),
            None => key::find()?,
        };
        let bearer = |key: SecretString| SecretString::from(format!("Bearer {}", key.expose_secret().trim()));
        let authorization = key.map(bearer);
        let mut headers = HeaderMap::new();
        if let Some(value) = &authorization {
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_invalid| Error::BadKey)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(tenant) = &globals.tenant {
            let value = HeaderValue::from_str(tenant).map_err(|_invalid| Error::BadTenant)?;
            headers.insert("x-tenant-id", value);
        }
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("hothouse/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true);
        if is_loopback(&server) {
            // A proxy for the outside world cannot reach this machine's own server.
            http = http.no_proxy();
        }
        Ok(Self {
            http: http.build().map_err(Error::Transport)?,
            server,
            authorization,
            tenant: globals.tenant.clone(),
            was_reached: AtomicBool::new(false),
        })
    }

    /// Does the server run on this machine, by this machine's clock?
    pub(crate) fn is_here(&self) -> bool {
        is_loopback(&self.server)
    }

    /// `host:port` of a server that speaks plain HTTP, for connections that are not this client's.
    ///
    /// # Errors
    /// [`Error::NotPlain`] for HTTPS.
    pub(crate) fn address(&self) -> Result<String, Error> {
        match (
            self.server.scheme(),
            self.server.host_str(),
            self.server.port_or_known_default(),
        ) {
            ("http", Some(host), Some(port)) => Ok(format!("{host}:{port}")),
            _ => Err(Error::NotPlain(self.server.to_string())),
        }
    }

    /// The headers that every call carries, for connections that are not this client's. The key is among them.
    pub(crate) fn raw_headers(&self) -> Vec<(&'static str, &str)> {
        let host = [("host", self.server.authority()), ("content-type", "application/json")];
        let mut headers = host.to_vec();
        headers.extend(
            self.authorization
                .as_ref()
                .map(|value| ("authorization", value.expose_secret())),
        );
        headers.extend(self.tenant.as_deref().map(|tenant| ("x-tenant-id", tenant)));
        headers
    }

    /// Reads a resource under the base path.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, Error> {
        let url = self.api_query(path, query);
        self.answer(self.http.get(url).timeout(Self::CALL_LIMIT), Repeat::Safe)
            .await
    }

    /// Reads a list that is never long and comes as one page.
    pub(crate) async fn whole_list(&self, path: &[&str]) -> Result<Vec<Value>, Error> {
        let page: Page = self.get(path, &[]).await?;
        Ok(page.data)
    }

    /// Reads a list, page after page, up to so many rows.
    pub(crate) async fn list(
        &self,
        path: &[&str],
        filters: &[(&str, String)],
        rows_max: usize,
    ) -> Result<Vec<Value>, Error> {
        let mut rows = Vec::new();
        let mut cursor = None;
        while rows.len() < rows_max {
            let mut query = filters.to_vec();
            query.push(("limit", (rows_max - rows.len()).min(Self::PAGE_ROWS).to_string()));
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page: Page = self.get(path, &query).await?;
            rows.extend(page.data);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        rows.truncate(rows_max);
        Ok(rows)
    }

    /// Does something that can be done twice without harm, such as cancel or pause.
    pub(crate) async fn post_repeatable<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let request = self.http.post(self.api_url(path)).json(body).timeout(Self::CALL_LIMIT);
        self.answer(request, Repeat::Safe).await
    }

    /// Does something that must not be done twice.
    pub(crate) async fn post_once<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let request = self.http.post(self.api_url(path)).json(body).timeout(Self::CALL_LIMIT);
        self.answer(request, Repeat::Never).await
    }

    /// Submits work under a fresh idempotency key, so that a repeated call is answered with the first one's job.
    pub(crate) async fn submit<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Error> {
        let request = self
            .http
            .post(self.api_url(path))
            .header("idempotency-key", Uuid::now_v7().to_string())
            .json(body)
            .timeout(Self::CALL_LIMIT);
        self.answer(request, Repeat::Safe).await
    }

    /// Sets a resource to what is given.
    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Error> {
        let request = self.http.put(self.api_url(path)).json(body).timeout(Self::CALL_LIMIT);
        self.answer(request, Repeat::Safe).await
    }

    /// Changes what is given of a resource. Doing it twice may count as two changes.
    pub(crate) async fn patch<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Error> {
        let request = self.http.patch(self.api_url(path)).json(body).timeout(Self::CALL_LIMIT);
        self.answer(request, Repeat::Never).await
    }

    /// Removes a resource.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), Error> {
        self.delete_matching(path, &[]).await
    }

    /// Removes what a query names.
    pub(crate) async fn delete_matching(&self, path: &[&str], query: &[(&str, String)]) -> Result<(), Error> {
        let url = self.api_query(path, query);
        let request = self.http.delete(url).timeout(Self::CALL_LIMIT);
        self.send_removal(request).await
    }

    /// Opens an answer whose body is read piece by piece, without a limit on the whole.
    pub(crate) async fn open(&self, url: Url) -> Result<Response, Error> {
        self.send(self.http.get(url), Repeat::Safe).await
    }

    /// Reads something outside the base path, such as `/readyz`, in whatever status it answers.
    pub(crate) async fn get_outside(&self, path: &str) -> Result<Response, Error> {
        let url = self.resolve(path)?;
        self.execute(self.http.get(url).timeout(Self::CALL_LIMIT)).await
    }

    /// Opens an event stream once; [`Follower`] does the repeating.
    pub(crate) async fn open_events(&self, path: &[&str], after: Option<u64>) -> Result<Response, Error> {
        let mut request = self.http.get(self.api_url(path)).header(ACCEPT, "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after.to_string());
        }
        let response = self.execute(request).await?;
        self.accept(response).await
    }

    /// Resolves an address that the server answered, such as an artifact's; another server's is refused, because the
    /// key goes with the call.
    pub(crate) fn resolve(&self, reference: &str) -> Result<Url, Error> {
        match self.server.join(reference) {
            Ok(url) if url.origin() == self.server.origin() => Ok(url),
            _ => Err(Error::ForeignUrl(reference.to_owned())),
        }
    }

    /// The address of a path under the base path; each segment is escaped.
    pub(crate) fn api_url(&self, path: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        url
    }

    fn api_query(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.api_url(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

fn parse_server(text: &str) -> Result<Url, Error> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(Error::BadServer(text.to_owned())),
    }
}

fn is_loopback(server: &Url) -> bool {
    let host = server.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
