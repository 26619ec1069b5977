//! The scripted provider as a server of its own, for anybody's tests: both wires over HTTP.
//!
//! It speaks through hyper, which the clients here bring along; the routes are four, so no router is needed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response as HttpResponse, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::frame::Frame;
use super::{Scripted, Told, count};
use crate::model::wire::Route;

/// Largest request, bytes.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where it says what it has told its clients.
const TOLD_PATH: &str = "/told";

/// A body as it goes out: an error in it breaks the connection.
type Body = StreamBody<BoxStream<'static, Result<BodyFrame<Bytes>, std::io::Error>>>;

/// Serves until `stop`; calls under way are dropped then.
pub async fn serve(scripted: Arc<Scripted>, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection is not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        // Pieces are small, and waiting for more of them is what a client would measure.
        drop(stream.set_nodelay(true));
        let scripted = Arc::clone(&scripted);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let scripted = Arc::clone(&scripted);
                async move { Ok::<_, Infallible>(respond(&scripted, request).await) }
            });
            let served = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
}

async fn respond(scripted: &Scripted, request: Request<Incoming>) -> HttpResponse<Body> {
    let path = request.uri().path().to_owned();
    if path == TOLD_PATH {
        let Told { calls, usage } = scripted.told();
        return plain(StatusCode::OK, &json!({"calls": calls, "usage": usage}).to_string());
    }
    let Some(route) = Route::of(request.method().as_str(), &path) else {
        let error = json!({"type": "not_found_error", "message": format!("there is no {path}")});
        return plain(
            StatusCode::NOT_FOUND,
            &json!({"type": "error", "error": error}).to_string(),
        );
    };
    let body = match Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let error = json!({"type": "request_too_large", "message": error.to_string()});
            return plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                &json!({"type": "error", "error": error}).to_string(),
            );
        }
    };
    let answer = scripted.answer(route, &body);
    let frames = body_of(answer.frames, scripted);
    let mut response = HttpResponse::new(frames);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn plain(status: StatusCode, text: &str) -> HttpResponse<Body> {
    let frames = vec![Frame::Event(text.to_owned())];
    let mut response = HttpResponse::new(StreamBody::new(data(body(frames, Arc::default()))));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn body_of(frames: Vec<Frame>, scripted: &Scripted) -> Body {
    StreamBody::new(data(body(frames, Arc::clone(&scripted.told))))
}

fn data(
    bytes: BoxStream<'static, Result<Bytes, std::io::Error>>,
) -> BoxStream<'static, Result<BodyFrame<Bytes>, std::io::Error>> {
    bytes.map(|chunk| chunk.map(BodyFrame::data)).boxed()
}

/// Stands in a script for the moment at which its piece is sent, microseconds since 1970: for those who measure.
pub const SENT_US: &str = "{{sent_us}}";

#[expect(
    clippy::disallowed_methods,
    reason = "compared with other processes' clocks on the same machine"
)]
fn stamped(text: String) -> Bytes {
    if text.contains(SENT_US) {
        let now = chrono::Utc::now().timestamp_micros().to_string();
        return Bytes::from(text.replace(SENT_US, &now));
    }
    Bytes::from(text)
}

/// The bytes of a body. Totals count once they have been sent.
pub(super) fn body(frames: Vec<Frame>, told: Arc<Mutex<Told>>) -> BoxStream<'static, Result<Bytes, std::io::Error>> {
    let start = Some((VecDeque::from(frames), told));
    stream::unfold(start, |state| async move {
        let (mut frames, told) = state?;
        loop {
            match frames.pop_front()? {
                Frame::Event(text) => return Some((Ok(stamped(text)), Some((frames, told)))),
                Frame::Told(usage) => count(&told, usage),
                Frame::Wait(pause) => tokio::time::sleep(pause).await,
                Frame::Stall => std::future::pending().await,
                Frame::Cut => {
                    // What is ready is sent before the body is asked again.
                    tokio::task::yield_now().await;
                    return Some((Err(std::io::Error::other("cut by the script")), None));
                }
            }
        }
    })
    .boxed()
}
