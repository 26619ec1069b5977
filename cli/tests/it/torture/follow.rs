//! Followers: clients on the live stream of a job, through whatever happens, on either API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use rand::seq::IndexedRandom as _;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::client::Clients;
use super::history::{Event, Followed};

/// Followers at once; more would be a load test.
const FOLLOWERS: usize = 24;

/// Nothing for so long, not even a heartbeat: the connection is dead, and the next one goes on.
const SILENCE: Duration = Duration::from_secs(15);

/// How long a follower goes on after the storm.
const PERSISTENCE: Duration = Duration::from_secs(90);

/// Follows what it is told to, until the sender is gone and all have ended.
pub(super) async fn run(clients: Arc<Clients>, mut jobs: mpsc::Receiver<(Uuid, String)>) -> Vec<Followed> {
    let (mut under_way, mut ended) = (JoinSet::new(), Vec::new());
    let mut is_open = true;
    while is_open || !under_way.is_empty() {
        tokio::select! {
            job = jobs.recv(), if is_open && under_way.len() < FOLLOWERS => match job {
                Some((job, key)) => {
                    under_way.spawn(follow(Arc::clone(&clients), job, key));
                }
                None => is_open = false,
            },
            () = clients.stop.cancelled(), if is_open => is_open = false,
            Some(followed) = under_way.join_next() => ended.push(followed.unwrap()),
        }
    }
    ended
}

async fn follow(clients: Arc<Clients>, job: Uuid, key: String) -> Followed {
    // The other time limit is for a whole answer.
    let http = Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let mut events: Vec<Event> = Vec::new();
    let mut patience = None;
    loop {
        let address = clients.addresses.choose(&mut rand::rng()).unwrap();
        let url = format!("{address}/api/v1/jobs/{job}/events");
        if connection(&http, &url, &key, &mut events).await {
            return Followed { job, events };
        }
        if clients.stop.is_cancelled() && patience.get_or_insert_with(Instant::now).elapsed() > PERSISTENCE {
            // The checker says what it did not see.
            return Followed { job, events };
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// One connection, from where the last one ended; answers whether the log has ended.
async fn connection(http: &Client, url: &str, key: &str, events: &mut Vec<Event>) -> bool {
    let after = events.last().map_or(0, |event| event.seq);
    let request = http.get(url).bearer_auth(key).header("Accept", "text/event-stream");
    let sent = request.header("Last-Event-ID", after.to_string()).send();
    let Ok(Ok(answer)) = tokio::time::timeout(SILENCE, sent).await else {
        return false;
    };
    if answer.status() != StatusCode::OK {
        return answer.status() == StatusCode::NO_CONTENT;
    }
    let (mut stream, mut bytes) = (answer.bytes_stream(), Vec::new());
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(SILENCE, stream.next()).await {
        bytes.extend_from_slice(&piece);
        while let Some(end) = bytes.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = bytes.drain(..end + 2).collect();
            events.extend(read(&String::from_utf8_lossy(&frame)));
        }
        if events
            .last()
            .is_some_and(|event| matches!(event.kind.as_str(), "succeeded" | "failed" | "cancelled"))
        {
            return true;
        }
    }
    false
}

/// A frame's event; none in one that only shows that the stream lives.
fn read(frame: &str) -> Option<Event> {
    let field = |name: &str| {
        frame
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let body: Value = serde_json::from_str(field("data")?).ok()?;
    Some(event(field("event")?, body))
}

/// An event as the checker compares it.
pub(super) fn event(kind: &str, mut body: Value) -> Event {
    if let Some(fields) = body.as_object_mut() {
        fields.remove("type");
    }
    Event {
        seq: body["seq"].as_u64().unwrap_or(0),
        kind: kind.to_owned(),
        attempt: body["attempt"].as_u64().unwrap_or(0),
        body,
    }
}
