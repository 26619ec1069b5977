//! A gateway that answers by itself, for a process that nobody has claimed: it calls a model once before it is needed, so
//! that its first call for somebody is not its first.
//!
//! # Invariants
//! - No provider hears of it, nothing is counted, and no token is asked for: what is asked is thrown away unread.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response};

use super::answer::Refusal;
use super::call::{Answered, Content};
use super::serve::{self, Body};
use super::{GATEWAY_PORT, bad, good, read};
use crate::model::wire::Route;
use crate::sandbox::{Sandbox, Tunnel};

/// The shortest answer of a model in Anthropic's wire.
const ANSWER: &str = r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_0","type":"message","role":"assistant","model":"none","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"-"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":0}}

event: message_stop
data: {"type":"message_stop"}

"#;

/// Serves the tunnels of a sandbox that is nobody's, until it is dropped, which closes them.
pub async fn rehearse(sandbox: &Sandbox) -> Infallible {
    match sandbox.tunnels() {
        Some(tunnels) => tunnels.serve(|tunnel| connection(tunnel).boxed()).await,
        None => std::future::pending().await,
    }
}

async fn connection(tunnel: Tunnel) {
    if tunnel.port == GATEWAY_PORT {
        serve::connection(tunnel, answer).await;
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let route = Route::of(request.method().as_str(), request.uri().path());
    let read = read(request.into_body()).await;
    let mut response = match (read, route) {
        (Ok(_), Some(Route::Messages)) => good(Answered {
            status: 200,
            content_type: "text/event-stream".to_owned(),
            request_id: None,
            body: Content::Whole(Bytes::from_static(ANSWER.as_bytes())),
        }),
        (Ok(_), _) => bad(&Refusal::new(404, "not_found_error", "nobody is here yet"), route),
        (Err(refusal), _) => bad(&refusal, route),
    };
    // A connection that it kept would be dead when somebody comes.
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
