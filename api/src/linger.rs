//! Bodies that nobody reads to their end.
//!
//! A client that is still sending when its connection closes never sees why: the system throws the answer away with what was
//! not read. So what a handler leaves of a body is read on beside the answer and thrown away, for as long as nginx does by
//! default (`lingering_time`, `lingering_timeout`); a client that takes longer is hung up on.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use futures_util::StreamExt as _;
use http_body::{Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Time for the rest of a body.
const REST: Duration = Duration::from_secs(30);

/// Time for a piece of it.
const PIECE: Duration = Duration::from_secs(5);

/// The request with a body of which any rest is read when it is dropped, until the stop.
pub(crate) fn lingering(request: Request, stop: &CancellationToken) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    // Whoever asks first sends nothing before somebody reads.
    let is_sent = !request.headers().contains_key(header::EXPECT);
    request.map(|body| {
        Body::new(Lingering {
            body,
            is_sent,
            stop: stop.clone(),
        })
    })
}

struct Lingering {
    body: Body,
    is_sent: bool,
    stop: CancellationToken,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.is_sent = true;
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            // Where its length was not told, the body itself does not know that this was its end.
            self.body = Body::empty();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if !self.is_sent || self.body.is_end_stream() {
            return;
        }
        // On the threads of its connection, with which it ends; without any there is no connection either.
        if let Ok(threads) = Handle::try_current() {
            let (body, stop) = (std::mem::take(&mut self.body), self.stop.clone());
            threads.spawn(async move { stop.run_until_cancelled(timeout(REST, read_on(body))).await });
        }
    }
}

async fn read_on(body: Body) {
    let mut pieces = body.into_data_stream();
    while let Ok(Some(Ok(_))) = timeout(PIECE, pieces.next()).await {}
}
