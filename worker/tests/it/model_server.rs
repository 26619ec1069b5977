//! A real HTTP server on a port of its own that speaks both wires by script, or answers as it is told.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::routing::any;
use common::config::Secret;
use common::message::Usage;
use futures_util::stream;
use tokio::task::JoinSet;
use worker::model::scripted::Scripted;
use worker::model::scripted::frame::Frame;
use worker::model::server::ServerSettings;
use worker::model::wire::Route;

/// The key that the server's clients use.
pub(crate) const KEY: &str = "sk-test-0123456789";

/// A server; it stops when it is dropped.
pub(crate) struct ModelServer {
    pub(crate) base_url: String,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

/// What the server saw and is about to do.
#[derive(Default)]
struct Seen {
    /// Headers and body of every request.
    requests: Vec<(HeaderMap, serde_json::Value)>,
    /// What it reported as used by whole answers.
    reported: Usage,
    /// Answers to be given before the script is asked.
    canned: VecDeque<Canned>,
    /// Answers whose client went away before they ended.
    abandoned: usize,
}

/// An answer that is given as it is.
pub(crate) struct Canned {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<Frame>,
}

impl Canned {
    /// An answer with a whole body.
    pub(crate) fn whole(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Self {
        Self {
            status,
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            body: vec![Frame::Event(body.to_owned())],
        }
    }

    /// The same, so much later.
    pub(crate) fn after(mut self, pause: Duration) -> Self {
        self.body.insert(0, Frame::Wait(pause));
        self
    }

    /// An event stream of these frames.
    pub(crate) fn stream(body: Vec<Frame>) -> Self {
        Self {
            status: 200,
            headers: vec![("content-type", "text/event-stream; charset=utf-8".to_owned())],
            body,
        }
    }
}

impl ModelServer {
    /// A server that plays these scripts.
    pub(crate) async fn start(scripted: Scripted) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let state = (Arc::clone(&seen), Arc::new(scripted));
        let router = Router::new().fallback(any(answer)).with_state(state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            base_url,
            seen,
            _tasks: tasks,
        }
    }

    /// A server that plays the built-in scripts.
    pub(crate) async fn demo() -> Self {
        Self::start(Scripted::built_in()).await
    }

    /// Gives this answer next.
    pub(crate) fn then(&self, canned: Canned) {
        self.seen.lock().unwrap().canned.push_back(canned);
    }

    /// Headers and bodies of the requests so far.
    pub(crate) fn requests(&self) -> Vec<(HeaderMap, serde_json::Value)> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// What it reported as used by whole answers.
    pub(crate) fn reported(&self) -> Usage {
        self.seen.lock().unwrap().reported
    }

    /// Answers whose client went away before they ended.
    pub(crate) fn abandoned(&self) -> usize {
        self.seen.lock().unwrap().abandoned
    }

    /// Settings of a client of this server, with short times.
    pub(crate) fn settings(&self) -> ServerSettings {
        ServerSettings {
            base_url: self.base_url.clone(),
            api_key: Secret::from(KEY.to_owned()),
            first_byte_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(10),
            ..ServerSettings::default()
        }
    }
}

type Shared = (Arc<Mutex<Seen>>, Arc<Scripted>);

async fn answer(
    State((seen, scripted)): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let canned = {
        let mut seen = seen.lock().unwrap();
        seen.requests
            .push((headers, serde_json::from_slice(&body).unwrap_or_default()));
        seen.canned.pop_front()
    };
    let canned = canned.unwrap_or_else(|| match Route::of(method.as_str(), uri.path()) {
        Some(route) => {
            let answer = scripted.answer(route, &body);
            Canned {
                status: answer.status,
                headers: answer.headers,
                body: answer.frames,
            }
        }
        None => Canned::whole(404, &[], "there is no such path"),
    });
    let mut response = Response::builder().status(canned.status);
    for (name, value) in canned.headers {
        response = response.header(name, value);
    }
    response.body(body_of(canned.body, seen)).unwrap()
}

/// Counts itself when it is dropped before the end was sent.
struct Unfinished(Option<Arc<Mutex<Seen>>>);

impl Unfinished {
    fn told(&self, usage: Usage) {
        if let Some(seen) = &self.0 {
            seen.lock().unwrap().reported += usage;
        }
    }

    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(seen) = self.0.take() {
            seen.lock().unwrap().abandoned += 1;
        }
    }
}

fn body_of(frames: Vec<Frame>, seen: Arc<Mutex<Seen>>) -> Body {
    let start = (VecDeque::from(frames), Unfinished(Some(seen)));
    Body::from_stream(stream::unfold(Some(start), |state| async move {
        let (mut frames, unfinished) = state?;
        loop {
            match frames.pop_front() {
                Some(Frame::Event(event)) => return Some((Ok(Bytes::from(event)), Some((frames, unfinished)))),
                Some(Frame::Told(usage)) => unfinished.told(usage),
                Some(Frame::Wait(pause)) => tokio::time::sleep(pause).await,
                Some(Frame::Stall) => std::future::pending().await,
                Some(Frame::Cut) => {
                    // What is ready is sent before the body is asked again.
                    tokio::task::yield_now().await;
                    unfinished.end();
                    return Some((Err(std::io::Error::other("cut by the script")), None));
                }
                None => {
                    unfinished.end();
                    return None;
                }
            }
        }
    }))
}
