//! A model's server of a test's own: answers as it is told, keeps what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// What it answers to a conversation in which the model has answered so often, since the user said this.
pub(crate) type Rule = dyn Fn(&str, usize) -> Answer + Send + Sync;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// A text.
    Text(String),
    /// A text, and a call of a tool that there is not.
    Call(String),
    /// 429, with so many seconds to wait.
    Busy(u32),
}

/// The server; it ends when it is dropped.
pub(crate) struct Provider {
    pub(crate) url: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    rule: Box<Rule>,
    /// How long each answer takes.
    pause: Duration,
    asked: Mutex<Vec<Value>>,
    calls: Mutex<HashMap<(String, usize), usize>>,
}

impl Provider {
    pub(crate) async fn start(pause: Duration, rule: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            rule: Box::new(rule),
            pause,
            asked: Mutex::default(),
            calls: Mutex::default(),
        });
        let app = Router::new()
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            url,
            shared,
            _tasks: tasks,
        }
    }

    /// How often each was asked: what the user had said, and answers before.
    pub(crate) fn calls(&self) -> HashMap<(String, usize), usize> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The last request.
    pub(crate) fn last(&self) -> Value {
        self.shared.asked.lock().unwrap().last().unwrap().clone()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, Json(request): Json<Value>) -> Response {
    let messages = request["messages"].as_array().unwrap();
    let asked = messages.iter().rposition(|message| message["role"] == "user").unwrap();
    let said = messages[asked]["content"].as_str().unwrap_or_default().to_owned();
    let rest = messages[asked..].iter();
    let step = rest.filter(|message| message["role"] == "assistant").count();
    *shared.calls.lock().unwrap().entry((said.clone(), step)).or_default() += 1;
    shared.asked.lock().unwrap().push(request);
    tokio::time::sleep(shared.pause).await;
    let (text, call) = match (shared.rule)(&said, step) {
        Answer::Busy(seconds) => {
            let body = Json(json!({"error": {"message": "slow down", "type": "rate_limit_error"}}));
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            return (StatusCode::TOO_MANY_REQUESTS, wait, body).into_response();
        }
        Answer::Text(text) => (text, None),
        Answer::Call(text) => (text, Some(format!("call_{step}"))),
    };
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        let chunk =
            json!({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let finish = if call.is_some() { "tool_calls" } else { "stop" };
    let mut body = chunk(json!({"role": "assistant", "content": text}), Value::Null);
    if let Some(id) = call {
        let function = json!({"name": "nothing", "arguments": "{}"});
        let call = json!({"index": 0, "id": id, "type": "function", "function": function});
        body += &chunk(json!({"tool_calls": [call]}), Value::Null);
    }
    body += &chunk(json!({}), finish.into());
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12});
    let last = json!({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [], "usage": usage});
    body += "data: ";
    body += &last.to_string();
    body += "\n\ndata: [DONE]\n\n";
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}
