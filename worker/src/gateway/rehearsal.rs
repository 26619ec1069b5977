//! A gateway that answers by itself, for a process that nobody has claimed: it calls a model once before it is needed, so
//! that its first call for somebody is not its first.
//!
//! # Invariants
//! - No provider hears of it, nothing is counted, and no token is asked for: what is asked is thrown away unread.

use std::convert::Infallible;

use bytes::Bytes;
use common::message::Usage;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response};

use super::answer::Refusal;
use super::call::{Answered, Content};
use super::serve::{self, Body};
use super::{GATEWAY_PORT, bad, good, read};
use crate::model::scripted::anthropic;
use crate::model::scripted::frame::Frame;
use crate::model::scripted::perform::Step;
use crate::model::wire::Route;
use crate::model::{ModelEvent, StopReason};
use crate::sandbox::{Sandbox, Tunnel};

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
            body: Content::Whole(shortest()),
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

/// The shortest answer of a model, in Anthropic's wire.
fn shortest() -> Bytes {
    let said = [
        ModelEvent::Usage(Usage::default()),
        ModelEvent::TextDelta { text: "-".to_owned() },
        ModelEvent::End {
            stop_reason: StopReason::EndTurn,
        },
    ];
    let frames = anthropic::frames("none", &said.map(Step::Event));
    let sent = frames.into_iter().filter_map(|frame| match frame {
        Frame::Event(event) => Some(event),
        _ => None,
    });
    sent.collect::<String>().into()
}
