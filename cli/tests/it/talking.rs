//! Conversations over real processes: a model that plays a test's script on both wires and keeps what it was asked, and
//! somebody who talks.

mod wires;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse as _, Response};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use worker::model::scripted::script::Script;
use worker::model::scripted::{Scripted, serve};

use crate::cluster::{Api, Cluster, SOON};

/// The model servers of a [`Model`], as agents name them.
pub(crate) const WIRES: [&str; 2] = ["ant", "oai"];

/// A model's server: the scripted provider behind somebody who writes down what it is asked. Refuses what the real ones
/// refuse, and is gone when it is dropped.
pub(crate) struct Model {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Value>>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Recorder {
    client: reqwest::Client,
    behind: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Model {
    /// Plays each of these scripts under its name.
    pub(crate) async fn start(scripts: &[(&str, Value)]) -> Self {
        let script = |json: &Value| serde_json::from_value::<Script>(json.clone()).unwrap();
        let scripted = scripts
            .iter()
            .fold(Scripted::built_in(), |all, (name, json)| all.with(*name, script(json)));
        let mut tasks = JoinSet::new();
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Recorder {
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            behind: format!("http://{}", behind.local_addr().unwrap()),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&recorder.asked);
        tasks.spawn(serve(Arc::new(scripted), behind, CancellationToken::new()));
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", front.local_addr().unwrap());
        let app = Router::new().fallback(pass).with_state(recorder);
        tasks.spawn(async move { axum::serve(front, app).await.unwrap() });
        Self {
            url,
            asked,
            _tasks: tasks,
        }
    }

    /// The settings with which a cluster knows it: as `ant/…` and `oai/…`, one for each wire, and as `busyant/…` and
    /// `busyoai/…`, whose pauses are others' than theirs.
    pub(crate) fn settings(&self, more: &[(&'static str, &'static str)]) -> &'static [(&'static str, &'static str)] {
        let url: &'static str = Box::leak(self.url.clone().into_boxed_str());
        let mut settings = vec![
            ("HOTHOUSE_MODEL__SERVERS__ANT__BASE_URL", url),
            ("HOTHOUSE_MODEL__SERVERS__ANT__WIRE", "anthropic"),
            ("HOTHOUSE_MODEL__SERVERS__OAI__BASE_URL", url),
            ("HOTHOUSE_MODEL__SERVERS__BUSYANT__BASE_URL", url),
            ("HOTHOUSE_MODEL__SERVERS__BUSYANT__WIRE", "anthropic"),
            ("HOTHOUSE_MODEL__SERVERS__BUSYOAI__BASE_URL", url),
        ];
        settings.extend(more);
        Box::leak(settings.into_boxed_slice())
    }

    /// The requests so far, oldest first.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Asserts that no request so far was one that a real server refuses.
    pub(crate) fn assert_valid(&self) {
        for request in self.asked() {
            let faults = wires::faults(&request);
            assert!(faults.is_empty(), "{faults:?} in {request:#}");
        }
    }
}

async fn pass(State(recorder): State<Recorder>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    if let Ok(mut request) = serde_json::from_slice::<Value>(&body) {
        request["path"] = uri.path().into();
        recorder.asked.lock().unwrap().push(request);
    }
    let asked = recorder
        .client
        .post(format!("{}{}", recorder.behind, uri.path()))
        .body(body);
    drop(headers);
    let Ok(answer) = asked.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let mut response = Response::builder().status(answer.status());
    for name in ["content-type", "retry-after"] {
        if let Some(value) = answer.headers().get(name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(answer.bytes_stream())).unwrap()
}

/// Somebody who talks to an agent of their own.
pub(crate) struct Talk {
    api: Api,
    /// Its agent.
    pub(crate) agent: String,
    /// The conversation.
    pub(crate) id: String,
}

impl Talk {
    /// Saves the agent and begins a conversation with it.
    pub(crate) async fn begin(api: &Api, mut definition: Value) -> Self {
        definition["name"] = Uuid::now_v7().to_string().into();
        let agent = post(api, "/agents", &definition).await;
        let agent = agent["id"].as_str().unwrap().to_owned();
        let made = post(api, "/conversations", &json!({"agent_id": agent})).await;
        Self {
            api: api.clone(),
            agent,
            id: made["id"].as_str().unwrap().to_owned(),
        }
    }

    /// Changes the agent for the turns to come.
    pub(crate) async fn change(&self, change: &Value) {
        let path = format!("/agents/{}", self.agent);
        let answer = self.api.call(Method::PATCH, &path, Some(change)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }

    /// Says something with these fields of a job; answers the job's id.
    pub(crate) async fn turn(&self, text: &str, fields: &Value) -> String {
        let mut body = fields.clone();
        body["text"] = text.into();
        let turn = post(&self.api, &format!("/conversations/{}/turns", self.id), &body).await;
        turn["job"]["id"].as_str().unwrap().to_owned()
    }

    /// The conversation's messages.
    pub(crate) async fn messages(&self) -> Vec<Value> {
        let list = self.api.get(&format!("/conversations/{}/messages", self.id)).await;
        list["data"].as_array().unwrap().clone()
    }

    /// Asserts that no turn of it is under way.
    pub(crate) async fn assert_idle(&self) {
        let read = self.api.get(&format!("/conversations/{}", self.id)).await;
        assert_eq!(read["active_job_id"], Value::Null, "{read:#}");
    }
}

/// A POST that must succeed.
pub(crate) async fn post(api: &Api, path: &str, body: &Value) -> Value {
    let answer = api.call(Method::POST, path, Some(body)).await.unwrap();
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert!(status.is_success(), "POST {path}: {status} {body:#}");
    body
}

/// Waits until a job's log has an event that is so.
pub(crate) async fn event(api: &Api, job: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let found = |page: &Value| page["data"].as_array()?.iter().find(|event| is_it(event)).cloned();
    let path = format!("/jobs/{job}/events?limit=1000");
    api.until(SOON, &path, found).await
}

/// Whether a process runs whose command line contains this.
pub(crate) fn runs(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .any(|line| line.contains(text))
}

/// What Redis still knows of work, when there should be none.
pub(crate) fn left_in_redis(cluster: &Cluster) -> Vec<String> {
    let keys = cluster.redis.lines(&["--scan"]).into_iter();
    let of_work = ["leases", "idx", "h:", "w:", "b:", "p:", "cancel:"];
    keys.filter(|key| {
        let rest = key.split_once("}:").map_or("", |(_, rest)| rest);
        of_work.iter().any(|start| rest.starts_with(start))
    })
    .collect()
}

/// How long what was asked to stop may take to be over, on a machine with other work.
pub(crate) const STOPPED: Duration = Duration::from_secs(5);
