//! HTTP over a tunnel.
//!
//! hyper reads and writes it: keep-alive, chunks and `Expect` are the same for every client library. A tunnel is not a
//! socket, so a pipe in memory stands between them, with a task on neither side: all of it is one future, and dropping
//! it ends the connection with everything that was asked through it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use crate::model::Error;
use crate::sandbox::{Tunnel, TunnelReader, TunnelWriter};

/// The body of an answer; an error in it breaks the connection, so that a cut answer never looks whole.
pub(super) type Body = UnsyncBoxBody<Bytes, Error>;

const PIPE_BYTES: usize = 64 * 1024;

/// How long the head of a request may take to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers every request of a connection with `answer`, until either end closes it.
pub(super) async fn connection<F>(tunnel: Tunnel, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Response<Body>>,
{
    let Tunnel { reader, writer, .. } = tunnel;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (from_server, to_server) = tokio::io::split(theirs);
    let http = async {
        let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        // A program that goes away, or speaks something else, is nobody's failure.
        drop(server.serve_connection(TokioIo::new(ours), service).await);
    };
    let answers = async { tokio::join!(http, down(from_server, &writer)) };
    tokio::select! {
        _ended = answers => {}
        never = up(reader, to_server) => match never {},
    }
}

/// What the program sends. Its end is passed on, and the connection lasts until the server is done with it.
async fn up(mut reader: TunnelReader, mut to_server: WriteHalf<DuplexStream>) -> Infallible {
    while let Ok(Some(data)) = reader.next().await {
        if to_server.write_all(&data).await.is_err() {
            break;
        }
    }
    drop(to_server.shutdown().await);
    std::future::pending().await
}

/// What the program gets.
async fn down(mut from_server: ReadHalf<DuplexStream>, writer: &TunnelWriter) {
    let mut buffer = vec![0; PIPE_BYTES / 2];
    loop {
        match from_server.read(&mut buffer).await {
            Ok(len) if len > 0 => {
                let data = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                if writer.write(data).await.is_err() {
                    return;
                }
            }
            _ => {
                drop(writer.finish().await);
                return;
            }
        }
    }
}
