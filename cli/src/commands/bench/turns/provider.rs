//! The provider that turns ask: scripted models, served by this process.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::model::scripted::script::Script;
use worker::model::scripted::{SENT_US, Scripted, Told, serve};

/// Pieces of a short turn.
const SHORT: u32 = 20;

/// A provider; it stops when it is dropped.
#[derive(Debug)]
pub(super) struct Provider {
    scripted: Arc<Scripted>,
    _server: JoinSet<()>,
}

impl Provider {
    /// Listens.
    pub(super) async fn start(address: SocketAddr, pieces: u32) -> anyhow::Result<Self> {
        let scripted = Scripted::built_in()
            .with("short", stamps(SHORT)?)
            .with("long", stamps(pieces)?)
            .with("mixed", mixed()?);
        let scripted = Arc::new(scripted);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let mut server = JoinSet::new();
        server.spawn(serve(Arc::clone(&scripted), listener, CancellationToken::new()));
        Ok(Self {
            scripted,
            _server: server,
        })
    }

    /// What it has told the server to have used.
    pub(super) fn told(&self) -> Told {
        self.scripted.told()
    }
}

/// So many pieces, fifty a second, each of the moment at which it is sent.
fn stamps(pieces: u32) -> anyhow::Result<Script> {
    let stamp = format!("{SENT_US} ");
    let mut reply = Vec::new();
    for n in 0..pieces {
        if n > 0 {
            reply.push(json!({"wait": "20ms"}));
        }
        reply.push(json!({ "text": stamp }));
    }
    script(&json!({"piece_chars": stamp.len(), "rules": [{"reply": reply}]}))
}

/// Answers of every kind: short, long, reasoned, from the cache, late, refused once in a while.
fn mixed() -> anyhow::Result<Script> {
    let cached = json!({"input_tokens": 900, "cached_input_tokens": 700, "cache_write_short_tokens": 100,
                        "output_tokens": 60, "reasoning_tokens": 20});
    let refused = json!({"error": {"status": 400, "kind": "invalid_request_error", "message": "no"}});
    script(&json!({"rules": [
        {"when": {"user_contains": "99"}, "reply": [refused]},
        {"when": {"user_contains": "7"}, "reply": [{"usage": cached}, {"reasoning": "hm"}, {"text": "from the cache"}]},
        {"when": {"user_contains": "3"}, "reply": [{"text": "{{user}} {{user}} {{user}} {{user}} {{user}}"}]},
        {"when": {"user_contains": "5"}, "reply": [{"wait": "5ms"}, {"text": "late"}]},
        {"reply": [{"text": "{{user}}"}]},
    ]}))
}

fn script(json: &Value) -> anyhow::Result<Script> {
    Ok(serde_json::from_value(json.clone())?)
}
