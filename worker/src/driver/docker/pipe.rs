//! The attached connection as a [`Pipe`]: stdout is init's frames, stderr is a few lines for the log.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bollard::container::{AttachContainerResults, LogOutput};
use bytes::Bytes;
use futures_util::{StreamExt, future};
use tokio::io::AsyncWrite;
use tokio_util::io::StreamReader;
use uuid::Uuid;

use super::super::Pipe;

/// Init says little, and only when something is wrong; whatever else arrives there must not fill the log.
const LOG_LINES_MAX: u32 = 20;
const LOG_LINE_BYTES_MAX: usize = 1024;

/// Takes the connection apart.
pub(super) fn pipe(attached: AttachContainerResults, id: Uuid) -> Pipe {
    let mut lines_left = LOG_LINES_MAX;
    let frames = attached.output.filter_map(move |piece| {
        future::ready(match piece {
            Ok(LogOutput::StdErr { message }) => {
                if lines_left > 0 {
                    lines_left -= 1;
                    log(id, &message);
                }
                None
            }
            Ok(other) => Some(Ok::<Bytes, io::Error>(other.into_bytes())),
            Err(e) => Some(Err(io::Error::other(e))),
        })
    });
    Pipe {
        reader: Box::new(StreamReader::new(frames)),
        writer: Box::new(Input(attached.input)),
    }
}

fn log(id: Uuid, message: &[u8]) {
    let message = &message[..message.len().min(LOG_LINE_BYTES_MAX)];
    let text = String::from_utf8_lossy(message);
    tracing::warn!(sandbox_id = %id, text = text.trim_end(), "init wrote to its standard error");
}

/// Init's input. Dropping it ends that input, although the connection lives on in the reader.
struct Input(Pin<Box<dyn AsyncWrite + Send>>);

impl AsyncWrite for Input {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(cx)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        // On a socket this is done at once. Where it is not, the reader's end closes the connection all the same.
        let mut context = Context::from_waker(Waker::noop());
        match self.0.as_mut().poll_shutdown(&mut context) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(e)) => tracing::debug!(error = %e, "the connection to a sandbox was closed before"),
        }
    }
}
