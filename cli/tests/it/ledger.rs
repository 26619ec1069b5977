//! A server that keeps jobs in memory, for the bench's own arithmetic and checks: it can lose a job, end one twice over
//! or break a log on purpose.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Loses the tenth job that it accepted.
    LosesOne,
    /// Ends every log twice.
    EndsTwice,
}

struct Ledger {
    fault: Fault,
    accepted: usize,
    paused: HashSet<String>,
    jobs: Vec<(Uuid, Value)>,
}

type App = State<Arc<Mutex<Ledger>>>;

/// Starts it; it lives as long as the tasks that are answered.
pub(crate) async fn start(fault: Fault) -> (SocketAddr, JoinSet<()>) {
    let ledger = Ledger {
        fault,
        accepted: 0,
        paused: HashSet::new(),
        jobs: Vec::new(),
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(|| async { Json(json!({"versions": {"postgres": "16.1"}})) }),
        )
        .route("/api/v1/jobs", post(submit).get(list))
        .route("/api/v1/jobs/batch", post(batch))
        .route("/api/v1/jobs/cancel", post(cancel))
        .route("/api/v1/jobs/{id}", get(job))
        .route("/api/v1/jobs/{id}/events", get(events))
        .route("/api/v1/queues/{name}/{verb}", post(queue))
        .with_state(Arc::new(Mutex::new(ledger)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, tasks)
}

impl Ledger {
    fn accept(&mut self, body: &Value) -> Value {
        let id = Uuid::now_v7();
        let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now());
        let queue = body["queue"].as_str().unwrap_or("default");
        let ends = !self.paused.contains(queue);
        let ended_at = ends.then_some(now);
        let state = if ends { "succeeded" } else { "queued" };
        let job = json!({"id": id, "kind": body["kind"], "queue": queue, "priority": 5, "state": state, "attempt": 1,
                         "created_at": now, "started_at": ended_at, "finished_at": ended_at});
        self.accepted += 1;
        if self.fault != Fault::LosesOne || self.accepted != 10 {
            self.jobs.push((id, job.clone()));
        }
        job
    }
}

async fn submit(State(app): App, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    (StatusCode::ACCEPTED, Json(app.lock().unwrap().accept(&body)))
}

async fn batch(State(app): App, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let mut ledger = app.lock().unwrap();
    let jobs = body["jobs"].as_array().unwrap().iter().enumerate();
    let data: Vec<Value> = jobs
        .map(|(index, job)| json!({"index": index, "job": ledger.accept(job)}))
        .collect();
    (StatusCode::ACCEPTED, Json(json!({"data": data})))
}

async fn cancel(State(app): App, Json(body): Json<Value>) -> Json<Value> {
    let mut matched = 0;
    for (_, job) in &mut app.lock().unwrap().jobs {
        if job["queue"] == body["queue"] && job["state"] == "queued" {
            matched += 1;
            if body["dry_run"] != true {
                job["state"] = "cancelled".into();
            }
        }
    }
    Json(json!({"matched": matched}))
}

#[derive(Deserialize)]
struct Filters {
    queue: String,
    state: Option<String>,
    limit: usize,
    cursor: Option<usize>,
}

async fn list(State(app): App, Query(filters): Query<Filters>) -> Json<Value> {
    let ledger = app.lock().unwrap();
    let from = filters.cursor.unwrap_or(0);
    let is_wanted = |job: &Value| filters.state.as_deref().is_none_or(|state| job["state"] == state);
    let in_queue = ledger
        .jobs
        .iter()
        .filter(|(_, job)| job["queue"] == filters.queue.as_str());
    let matching = in_queue.filter(|(_, job)| is_wanted(job));
    let data: Vec<&Value> = matching.skip(from).take(filters.limit).map(|(_, job)| job).collect();
    let next = (data.len() == filters.limit).then(|| (from + filters.limit).to_string());
    Json(json!({"data": data, "next_cursor": next}))
}

async fn job(State(app): App, Path(id): Path<Uuid>) -> Json<Value> {
    let ledger = app.lock().unwrap();
    let job = ledger
        .jobs
        .iter()
        .find(|(one, _)| *one == id)
        .map(|(_, job)| job.clone());
    // The waiting call for a job that was lost must not be what finds out.
    Json(job.unwrap_or_else(|| json!({"id": id, "finished_at": "2026-01-01T00:00:00Z"})))
}

/// The stream, or the page, of a job that has run.
async fn events(State(app): App, headers: HeaderMap) -> Response {
    let mut kinds = vec!["queued", "started", "succeeded"];
    if app.lock().unwrap().fault == Fault::EndsTwice {
        kinds.insert(2, "failed");
    }
    let at = "2026-01-01T00:00:00Z";
    if headers["accept"] != "text/event-stream" {
        let data = (1..)
            .zip(kinds)
            .map(|(seq, kind)| json!({"seq": seq, "type": kind, "at": at}));
        return Json(json!({"data": data.collect::<Vec<_>>(), "next_cursor": null})).into_response();
    }
    let frames = (1..)
        .zip(kinds)
        .map(|(seq, kind)| format!("id: {seq}\nevent: {kind}\ndata: {{\"at\":\"{at}\"}}\n\n"));
    frames.collect::<String>().into_response()
}

async fn queue(State(app): App, Path((name, verb)): Path<(String, String)>) -> Json<Value> {
    let mut ledger = app.lock().unwrap();
    match verb.as_str() {
        "pause" => ledger.paused.insert(name.clone()),
        _ => ledger.paused.remove(&name),
    };
    Json(json!({"name": name}))
}
