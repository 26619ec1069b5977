//! The small HTTP listener of processes that serve nobody else: `/healthz`, `/readyz`, `/metrics`.
//!
//! hyper without a framework: three routes without bodies need no router, and axum stays the API's own. Each connection
//! carries one request and ends after it, so nothing here outlives a question.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Health;

/// Longest time of a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// Between two attempts to take the address.
const RETRY: Duration = Duration::from_secs(5);
/// Between two folds of recorded samples, which pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Who answers.
#[derive(Clone, Debug)]
struct Responder {
    health: Health,
    metrics: Option<PrometheusHandle>,
}

/// Answers at `address` until `stop`. An address that is taken is said once and asked for again: a process whose health
/// cannot be asked works all the same.
pub async fn run(address: SocketAddr, health: Health, metrics: Option<PrometheusHandle>, stop: CancellationToken) {
    let responder = Responder { health, metrics };
    let mut is_told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if is_told => tracing::debug!(%error, %address, "health cannot be asked here yet"),
            Err(error) => tracing::warn!(%error, %address, "health cannot be asked here: is the address taken?"),
        }
        is_told = true;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    };
    tracing::info!(%address, "health can be asked");
    serve(&listener, &responder, &stop).await;
}

async fn serve(listener: &TcpListener, responder: &Responder, stop: &CancellationToken) {
    let mut connections = JoinSet::new();
    let mut upkeep = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _now = upkeep.tick() => responder.metrics.iter().for_each(PrometheusHandle::run_upkeep),
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _from)) => { connections.spawn(answer(stream, responder.clone())); }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn answer(stream: TcpStream, responder: Responder) {
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(responder.respond(&request))));
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "a question about health broke off"),
        Err(_) => tracing::trace!("a question about health took too long"),
    }
}

impl Responder {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET or HEAD\n".to_owned());
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "application/json", r#"{"status":"ok"}"#.to_owned()),
            "/readyz" => self.ready(),
            "/metrics" => self.measured(),
            _ => text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "/healthz, /readyz, /metrics\n".to_owned(),
            ),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let report = self.health.report();
        let status = if report.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        // Three strings, numbers and flags: nothing in it can fail to be written.
        text(
            status,
            "application/json",
            serde_json::to_string(&report).unwrap_or_default(),
        )
    }

    fn measured(&self) -> Response<Full<Bytes>> {
        let Some(handle) = &self.metrics else {
            return text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "this process records no metrics\n".to_owned(),
            );
        };
        for part in self.health.report().parts {
            let stalled = if part.ok { 0.0 } else { 1.0 };
            ::metrics::gauge!("hothouse_stalled", "part" => part.name).set(stalled);
        }
        text(StatusCode::OK, "text/plain; version=0.0.4", handle.render())
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_says_which_part_stalls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::new(Duration::from_secs(1));
        let (claim, stop) = (health.pulse("claim", Duration::ZERO), CancellationToken::new());
        let responder = Responder { health, metrics: None };
        let asked = async {
            assert!(ask(address, "GET /healthz").await.starts_with("HTTP/1.1 200"));
            let stalled = ask(address, "GET /readyz").await;
            assert!(stalled.starts_with("HTTP/1.1 503"), "{stalled}");
            assert!(
                stalled.contains(r#"{"status":"stalled","parts":[{"name":"claim","ok":false"#),
                "{stalled}"
            );
            claim.progress();
            assert!(ask(address, "GET /readyz?x=1").await.starts_with("HTTP/1.1 200"));
            assert!(ask(address, "HEAD /readyz").await.ends_with("\r\n\r\n"));
            assert!(ask(address, "POST /readyz").await.starts_with("HTTP/1.1 405"));
            assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404"));
            assert!(ask(address, "GET /metrics").await.starts_with("HTTP/1.1 404"));
            assert!(ask(address, "nonsense").await.starts_with("HTTP/1.1 400"));
            stop.cancel();
        };
        tokio::join!(serve(&listener, &responder, &stop), asked);
    }
}
