//! A server of the test's own, and a client that talks to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::{Config, Server};
use common::config::Secret;
use common::lifecycle::Lifecycle;
use common::testing::{TestEnv, eventually};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgPool};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// The configured key.
pub(crate) const ADMIN: &str = "hh_the_admin_key_of_the_test";

/// A server and its surroundings; it stops when this is dropped.
pub(crate) struct Api {
    pub(crate) env: TestEnv,
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
    client: reqwest::Client,
    lifecycle: Lifecycle,
}

/// An answer that was read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The body of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// The pointers, parameters or headers that a problem names.
    pub(crate) fn places(&self) -> Vec<String> {
        let place = |error: &Value| {
            let kinds = ["pointer", "parameter", "header"];
            kinds
                .iter()
                .find_map(|kind| error[kind].as_str())
                .unwrap_or("?")
                .to_owned()
        };
        self.body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(place)
            .collect()
    }

    /// Refuses everything but a well-formed problem with this status and code.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.body["code"], code, "{}", self.body);
        assert_eq!(self.body["status"], status);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(
            self.headers["x-request-id"].to_str().unwrap(),
            self.body["request_id"].as_str().unwrap()
        );
        assert!(self.body["title"].is_string() && self.body["detail"].is_string() && self.body["errors"].is_array());
    }
}

pub(crate) fn config(env: &TestEnv, pool: &PgPool) -> Config {
    let mut config: Config = common::config::load(None, []).unwrap();
    config.database.url = Secret::from(pool.connect_options().to_url_lossy().to_string());
    config.database.connections_max = 8;
    config.redis = env.redis.clone();
    config.http.address = "127.0.0.1:0".parse().unwrap();
    config.http.migrate = false;
    config.auth.admin_key = Secret::from(ADMIN.to_owned());
    config
}

impl Api {
    /// A server with the default settings.
    pub(crate) async fn start(pool: PgPool) -> Self {
        Self::start_with(pool, |_| {}).await
    }

    /// A server whose settings `change` touches.
    pub(crate) async fn start_with(pool: PgPool, change: impl FnOnce(&mut Config)) -> Self {
        let env = TestEnv::new(pool.clone()).await;
        let mut config = config(&env, &pool);
        change(&mut config);
        let lifecycle = Lifecycle::new();
        let server = Server::bind(config, env.clock.clock(), &lifecycle).await.unwrap();
        let address = server.address();
        let stop = lifecycle.clone();
        lifecycle.spawn("api", async move { server.serve(&stop).await });
        let client = reqwest::Client::builder().timeout(SOON * 2).build().unwrap();
        let api = Self {
            env,
            address,
            key: ADMIN.to_owned(),
            client,
            lifecycle,
        };
        eventually(SOON, "it is ready", async || {
            let ready = answer(api.bare(Method::GET, "/readyz")).await;
            (ready.status == StatusCode::OK).then_some(())
        })
        .await;
        api.get("/jobs").await.expect(200);
        api
    }

    /// Another replica of the same installation.
    pub(crate) async fn replica(&self, pool: &PgPool) -> Self {
        let lifecycle = Lifecycle::new();
        let server = Server::bind(config(&self.env, pool), self.env.clock.clock(), &lifecycle)
            .await
            .unwrap();
        let address = server.address();
        let stop = lifecycle.clone();
        lifecycle.spawn("api", async move { server.serve(&stop).await });
        Self {
            env: self.env.clone(),
            address,
            key: self.key.clone(),
            client: self.client.clone(),
            lifecycle,
        }
    }

    /// The same server, called with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            env: self.env.clone(),
            address: self.address,
            key: key.to_owned(),
            client: self.client.clone(),
            // Dropping this stops nothing.
            lifecycle: Lifecycle::new(),
        }
    }

    /// A new tenant and a member's key of it.
    pub(crate) async fn tenant(&self, fields: Value) -> (String, Self) {
        let tenant = self.post("/tenants", fields).await.expect(201);
        let id = tenant["id"].as_str().unwrap().to_owned();
        let key = self
            .post("/keys", json!({"tenant_id": id, "role": "member"}))
            .await
            .expect(201);
        (id, self.with_key(key["key"].as_str().unwrap()))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1{path}", self.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(&self.key)
    }

    /// A request without a key, to any path.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::PATCH, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        answer(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    /// A POST of any bytes as JSON.
    pub(crate) async fn post_bytes(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        answer(
            self.request(Method::POST, path)
                .header("content-type", "application/json")
                .body(body),
        )
        .await
    }

    /// Submits a job and answers its id.
    pub(crate) async fn submit(&self, body: Value) -> String {
        self.post("/jobs", body).await.expect(202)["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Stops the server softly.
    pub(crate) fn stop(&self) {
        self.lifecycle.stop();
    }

    /// Waits until everything of the server has ended.
    pub(crate) async fn stopped(&self, limit: Duration) -> bool {
        self.lifecycle.drained(limit, Duration::from_secs(1)).await
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.lifecycle.stop_hard();
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

/// Stands between the server and a service, and can be switched off.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    is_up: Arc<AtomicBool>,
    is_silent: Arc<AtomicBool>,
    cut: Arc<std::sync::Mutex<CancellationToken>>,
    tasks: tokio::task::JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_up = Arc::new(AtomicBool::new(true));
        let cut = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
        let is_silent = Arc::new(AtomicBool::new(false));
        let (up, silent, token) = (Arc::clone(&is_up), Arc::clone(&is_silent), Arc::clone(&cut));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            let mut held = Vec::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                if silent.load(Ordering::SeqCst) {
                    held.push(near);
                    continue;
                }
                if !up.load(Ordering::SeqCst) {
                    continue;
                }
                let (target, token) = (target.clone(), token.lock().unwrap().clone());
                connections.spawn(async move {
                    let (mut near, mut far) = (near, TcpStream::connect(target).await.unwrap());
                    tokio::select! {
                        () = token.cancelled() => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self {
            address,
            is_up,
            is_silent,
            cut,
            tasks,
        }
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn down(&self) {
        assert_eq!(self.tasks.len(), 1);
        self.is_up.store(false, Ordering::SeqCst);
        self.cut.lock().unwrap().cancel();
    }

    /// Ends every connection, and takes new ones without a word.
    pub(crate) fn silence(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
        self.cut.lock().unwrap().cancel();
    }

    /// Lets connections through again.
    pub(crate) fn up(&self) {
        *self.cut.lock().unwrap() = CancellationToken::new();
        self.is_up.store(true, Ordering::SeqCst);
    }
}

/// The host and port of a URL.
pub(crate) fn authority(url: &str) -> String {
    let rest = url.split_once("://").unwrap().1;
    let host = rest.split('/').next().unwrap();
    host.rsplit('@').next().unwrap().to_owned()
}
