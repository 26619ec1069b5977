//! Following a job: its events, each once and in order, whatever happens to the connection.
//!
//! A stream that breaks, goes quiet or ends early is opened again after the last event that was seen. The server's
//! heartbeat comes every 10 s, so a stream without a byte for [`QUIET_LIMIT`] is dead.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::sse::{Frame, LineTooLong, Parser};
use super::{Client, Error};

/// Three heartbeats.
const QUIET_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may be away before following gives up.
const AWAY_LIMIT: Duration = Duration::from_mins(5);
/// The pause before a reconnect while the server has not asked for another.
const RETRY: Duration = Duration::from_secs(1);

/// One event of a job's log.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Event {
    /// Its place in the log.
    #[serde(default)]
    pub(crate) seq: u64,
    /// Its type, as API.md names it (`stdout`, `succeeded`, …). A page of events carries it as `type`.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    /// All its fields, `seq` and `at` among them.
    #[serde(flatten)]
    pub(crate) data: Map<String, Value>,
}

impl Event {
    fn read(frame: Frame) -> Result<Self, Error> {
        let mut event: Self = serde_json::from_str(&frame.data).map_err(Error::Answer)?;
        event.kind = frame.event;
        if let Some(seq) = frame.id.and_then(|id| id.parse().ok()) {
            event.seq = seq;
        }
        Ok(event)
    }

    /// A field that is text, or the empty text.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.data.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Is it the last one of its job?
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.kind.as_str(), "succeeded" | "failed" | "cancelled")
    }

    /// The event as the API's pages show it: all fields, its type and its number.
    pub(crate) fn to_json(&self) -> Value {
        let mut fields = self.data.clone();
        fields.insert("seq".to_owned(), self.seq.into());
        fields.insert("type".to_owned(), self.kind.as_str().into());
        Value::Object(fields)
    }
}

/// Reads a job's events until its terminal one.
#[derive(Debug)]
pub(crate) struct Follower<'c> {
    client: &'c Client,
    path: Vec<String>,
    after: Option<u64>,
    response: Option<Response>,
    parser: Parser,
    frames: VecDeque<Frame>,
    ended: bool,
    retry: Duration,
    away_since: Option<Instant>,
    quiet_limit: Duration,
}

impl<'c> Follower<'c> {
    /// Follows a job from its first event, or from the one after `after`.
    pub(crate) fn new(client: &'c Client, job_id: Uuid, after: Option<u64>) -> Self {
        Self {
            client,
            path: vec!["jobs".to_owned(), job_id.to_string(), "events".to_owned()],
            after,
            response: None,
            parser: Parser::default(),
            frames: VecDeque::new(),
            ended: false,
            retry: RETRY,
            away_since: None,
            quiet_limit: QUIET_LIMIT,
        }
    }

    /// The next event; none after the terminal one. Cancel-safe: a call that is dropped loses no event.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while let Some(frame) = self.frames.pop_front() {
                if let Some(event) = self.take(frame)? {
                    return Ok(Some(event));
                }
            }
            if self.ended {
                return Ok(None);
            }
            match self.read().await {
                Ok(()) => {}
                Err(error) if self.may_go_on(&error) => {
                    self.response = None;
                    let pause = error.retry_after().unwrap_or(self.retry);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The frame's event, unless it was seen before the reconnect.
    fn take(&mut self, frame: Frame) -> Result<Option<Event>, Error> {
        let event = Event::read(frame)?;
        // A gap is announced under the number at which the log goes on, and is never a repetition.
        let is_new = event.kind == "resume_gap" || self.after.is_none_or(|after| event.seq > after);
        if !is_new {
            return Ok(None);
        }
        if event.kind != "resume_gap" {
            self.after = Some(event.seq);
        }
        self.ended = event.is_terminal();
        Ok(Some(event))
    }

    /// Opens the stream when it is not open, else reads the next piece of it.
    async fn read(&mut self) -> Result<(), Error> {
        let Some(response) = &mut self.response else {
            let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
            let opening = self.client.open_events(&path, self.after);
            let response = within(self.quiet_limit, opening).await??;
            self.ended = response.status() == StatusCode::NO_CONTENT;
            self.parser = Parser::default();
            self.response = Some(response);
            return Ok(());
        };
        let piece = within(self.quiet_limit, response.chunk())
            .await?
            .map_err(Error::Transport)?;
        let Some(piece) = piece else {
            // The end of the stream without a terminal event: the replica goes away, or its connection limit passed.
            self.response = None;
            tokio::time::sleep(self.retry).await;
            return Ok(());
        };
        self.away_since = None;
        let pushed = self.parser.push(&piece, &mut self.frames);
        self.retry = self.parser.retry.unwrap_or(self.retry);
        pushed.map_err(|LineTooLong(bytes)| Error::EventTooLong(bytes))
    }

    fn may_go_on(&mut self, error: &Error) -> bool {
        let away_since = *self.away_since.get_or_insert_with(Instant::now);
        error.is_passing() && away_since.elapsed() < AWAY_LIMIT
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Error> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_elapsed| Error::TimedOut(limit))
}

#[cfg(test)]
mod tests;
