//! A real server that drops, repeats, stalls and refuses on purpose.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode as Status};
use axum::response::{IntoResponse as _, Response as Answer};
use axum::routing::get;
use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;

use super::*;
use crate::globals::Globals;

/// What the server does with one connection.
enum Step {
    /// Sends these events and closes.
    Send(Vec<u64>),
    /// Sends these events and a piece of another, then breaks the connection.
    Break(Vec<u64>),
    /// Sends these events, then nothing more, keeping the connection open.
    Stall(Vec<u64>),
    /// Answers with a status.
    Refuse(u16),
}

type Script = Arc<Mutex<(VecDeque<Step>, Vec<Option<String>>)>>;

/// The event with this number: 5 is the last of the job.
fn event(seq: u64) -> String {
    let kind = if seq == 5 { "succeeded" } else { "stdout" };
    format!("id: {seq}\nevent: {kind}\ndata: {{\"seq\":{seq},\"text\":\"{seq}\"}}\n\n")
}

async fn serve(State(script): State<Script>, headers: HeaderMap) -> Answer {
    let step = {
        let mut script = script.lock().unwrap();
        let after = headers
            .get("last-event-id")
            .map(|value| value.to_str().unwrap().to_owned());
        script.1.push(after);
        script.0.pop_front().unwrap_or(Step::Refuse(404))
    };
    let text = |seqs: Vec<u64>| {
        seqs.into_iter()
            .map(event)
            .fold("retry: 1\n\n: hb\n".to_owned(), |text, e| text + &e)
    };
    match step {
        Step::Refuse(status) => Status::from_u16(status).unwrap().into_response(),
        Step::Send(seqs) => text(seqs).into_response(),
        Step::Break(seqs) => {
            let pieces = stream::iter([Ok(text(seqs) + "id: 9\nevent: stdo")]);
            let fault = stream::once(async {
                // What came before leaves the server first.
                tokio::task::yield_now().await;
                Err("broken on purpose")
            });
            Answer::new(Body::from_stream(pieces.chain(fault)))
        }
        Step::Stall(seqs) => {
            let first = stream::iter([Ok::<_, Infallible>(Bytes::from(text(seqs)))]);
            Answer::new(Body::from_stream(first.chain(stream::pending())))
        }
    }
}

struct Server {
    client: Client,
    script: Script,
    tasks: JoinSet<()>,
}

impl Server {
    async fn start(steps: Vec<Step>) -> Self {
        let script: Script = Arc::new(Mutex::new((steps.into(), Vec::new())));
        let app = Router::new()
            .route("/api/v1/jobs/{id}/events", get(serve))
            .with_state(Arc::clone(&script));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let globals = Globals {
            server: format!("http://{address}"),
            key: Some("hh_test".into()),
            tenant: None,
            json: false,
        };
        Self {
            client: Client::new(&globals).unwrap(),
            script,
            tasks,
        }
    }

    /// Follows to the end: the numbers seen, in order.
    async fn follow(&self, after: Option<u64>) -> Result<Vec<u64>, Error> {
        let mut follower = Follower::new(&self.client, Uuid::nil(), after);
        follower.quiet_limit = Duration::from_millis(200);
        let mut seen = Vec::new();
        while let Some(event) = follower.next().await? {
            seen.push(event.seq);
        }
        Ok(seen)
    }

    /// The `Last-Event-ID` of each connection.
    fn asked(&self) -> Vec<Option<String>> {
        self.script.lock().unwrap().1.clone()
    }
}

/// The `Last-Event-ID`s of connections, 0 for none.
fn after<const N: usize>(seqs: [u64; N]) -> [Option<String>; N] {
    seqs.map(|seq| (seq > 0).then(|| seq.to_string()))
}

#[tokio::test]
async fn a_whole_stream_is_read_once() {
    let server = Server::start(vec![Step::Send(vec![1, 2, 3, 4, 5])]).await;
    assert_eq!(server.follow(None).await.unwrap(), [1, 2, 3, 4, 5]);
    assert_eq!(server.asked(), after([0]));
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_after_the_last_event_seen() {
    let steps = vec![
        Step::Break(vec![1, 2]),
        Step::Send(vec![3]),
        Step::Break(vec![]),
        Step::Send(vec![4, 5]),
    ];
    let server = Server::start(steps).await;
    assert_eq!(server.follow(None).await.unwrap(), [1, 2, 3, 4, 5]);
    assert_eq!(server.asked(), after([0, 2, 3, 3]));
}

#[tokio::test]
async fn what_a_server_repeats_is_seen_once() {
    let server = Server::start(vec![Step::Break(vec![1, 2, 3]), Step::Send(vec![2, 3, 4, 5])]).await;
    assert_eq!(server.follow(None).await.unwrap(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_stream_that_goes_quiet_is_opened_again() {
    let server = Server::start(vec![Step::Stall(vec![1]), Step::Send(vec![2, 3, 4, 5])]).await;
    assert_eq!(server.follow(None).await.unwrap(), [1, 2, 3, 4, 5]);
    assert_eq!(server.asked(), after([0, 1]));
}

#[tokio::test]
async fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let steps = vec![
        Step::Send(vec![1]),
        Step::Refuse(503),
        Step::Refuse(502),
        Step::Send(vec![2, 3, 4, 5]),
    ];
    let server = Server::start(steps).await;
    assert_eq!(server.follow(None).await.unwrap(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_log_that_has_ended_before_is_the_end() {
    let server = Server::start(vec![Step::Refuse(204)]).await;
    assert_eq!(server.follow(Some(5)).await.unwrap(), [0; 0]);
    assert_eq!(server.asked(), after([5]));
}

#[tokio::test]
async fn a_job_that_does_not_exist_is_an_error_at_once() {
    let server = Server::start(vec![Step::Send(vec![1]), Step::Refuse(404)]).await;
    let error = server.follow(None).await.unwrap_err();
    assert_eq!(error.to_string(), "not found (404)");
}

#[tokio::test]
async fn a_server_that_was_never_there_is_an_error_at_once() {
    let mut server = Server::start(vec![]).await;
    server.tasks.shutdown().await;
    let error = server.follow(None).await.unwrap_err();
    assert!(
        error.to_string().starts_with("no server answers at http://127.0.0.1"),
        "{error}"
    );
}
