//! A small server that speaks the wire contract and breaks connections on purpose, which a real one does not do on
//! request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The only job there is.
pub(crate) const JOB: &str = "0193f000-0000-7000-8000-000000000001";

/// What the job prints and how it ends.
#[derive(Clone)]
pub(crate) struct Play {
    /// Events before the last one; each connection gets two of them and then breaks.
    pub(crate) events: Vec<(&'static str, Value)>,
    /// The job as it is in the end.
    pub(crate) last: Value,
    /// Submissions that are answered with 503 first.
    pub(crate) refusals: usize,
    /// Does it run until it is cancelled?
    pub(crate) runs_on: bool,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) submissions: Vec<(Option<String>, Value)>,
    pub(crate) resumed_after: Vec<Option<u64>>,
    pub(crate) cancels: usize,
}

struct Shared {
    play: Play,
    seen: Mutex<Seen>,
    cancelled: watch::Sender<bool>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(play: Play) -> Self {
        let shared = Arc::new(Shared {
            play,
            seen: Mutex::default(),
            cancelled: watch::channel(false).0,
        });
        let app = Router::new()
            .route("/api/v1/jobs", post(submit))
            .route("/api/v1/jobs/{id}", get(job))
            .route("/api/v1/jobs/{id}/cancel", post(cancel))
            .route("/api/v1/jobs/{id}/events", get(events))
            .route("/api/v1/jobs/{id}/artifacts/{*path}", get(artifact))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            shared,
            _tasks: tasks,
        }
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }
}

type App = State<Arc<Shared>>;

async fn submit(State(app): App, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let key = headers
        .get("idempotency-key")
        .map(|key| key.to_str().unwrap().to_owned());
    let mut seen = app.seen.lock().unwrap();
    seen.submissions.push((key, body));
    if seen.submissions.len() <= app.play.refusals {
        let problem = json!({"title": "Unavailable", "status": 503, "code": "unavailable", "request_id": "r"});
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], Json(problem)).into_response();
    }
    (StatusCode::ACCEPTED, Json(as_job("queued", &json!({})))).into_response()
}

async fn job(State(app): App) -> Json<Value> {
    Json(last(&app))
}

async fn cancel(State(app): App) -> Response {
    app.seen.lock().unwrap().cancels += 1;
    app.cancelled.send_replace(true);
    (StatusCode::ACCEPTED, Json(as_job("running", &json!({})))).into_response()
}

async fn artifact(Path((_, path)): Path<(String, String)>) -> String {
    format!("content of {path}")
}

/// Two events a connection, then it breaks in the middle of a third.
async fn events(State(app): App, headers: HeaderMap) -> Response {
    let after = headers
        .get("last-event-id")
        .map(|id| id.to_str().unwrap().parse::<u64>().unwrap());
    app.seen.lock().unwrap().resumed_after.push(after);
    let seen = after.unwrap_or(0);
    let all = (1..)
        .zip(&app.play.events)
        .map(|(seq, (kind, data))| frame(seq, kind, data));
    let rest: Vec<String> = all.skip(usize::try_from(seen).unwrap()).collect();
    let has_more = rest.len() > 2;
    let head = "retry: 1\n\n".to_owned() + &rest.iter().take(2).cloned().collect::<String>();
    let seq = app.play.events.len() as u64 + 1;
    let tail = stream::once(async move {
        if has_more {
            // What came before leaves the server first.
            tokio::task::yield_now().await;
            return Err("broken on purpose");
        }
        if app.play.runs_on {
            app.cancelled
                .subscribe()
                .wait_for(|is_cancelled| *is_cancelled)
                .await
                .map_err(|_gone| "stopped")?;
        }
        let state = last(&app)["state"].as_str().unwrap().to_owned();
        Ok(frame(seq, &state, &last(&app)))
    });
    Response::new(Body::from_stream(stream::iter([Ok(head)]).chain(tail)))
}

fn frame(seq: u64, kind: &str, data: &Value) -> String {
    let mut data = data.clone();
    data["seq"] = seq.into();
    format!("id: {seq}\nevent: {kind}\ndata: {data}\n\n")
}

fn last(app: &Shared) -> Value {
    let state = if *app.cancelled.borrow() {
        "cancelled"
    } else {
        app.play.last["state"].as_str().unwrap()
    };
    as_job(state, &app.play.last)
}

fn as_job(state: &str, more: &Value) -> Value {
    let mut job =
        json!({"id": JOB, "kind": "exec", "queue": "default", "priority": 5, "created_at": "2026-01-01T00:00:00Z"});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job["state"] = state.into();
    job
}
