//! Sending: a call that may be repeated (reads, cancels, submissions under an idempotency key) is repeated while the
//! server says 503 or 429, or the connection breaks, for as long as [`Client::PATIENCE`] lasts. A server that was never
//! there is an error at once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{Client, Error};

/// May the call be sent a second time without doing its work twice?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Safe,
    Never,
}

/// The last of the answers to a call, when none was good.
struct Refused {
    error: Error,
    /// Was it the answer to a repetition?
    was_repeated: bool,
}

impl Client {
    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        repeat: Repeat,
    ) -> Result<T, Error> {
        let response = self.send(request, repeat).await?;
        let body = response.bytes().await.map_err(|error| self.broken(error))?;
        // An empty answer reads as null.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(Error::Answer)
    }

    /// Sends until it is answered, refused for good, or patience ends.
    pub(super) async fn send(&self, request: RequestBuilder, repeat: Repeat) -> Result<Response, Error> {
        self.send_counted(request, repeat)
            .await
            .map_err(|refused| refused.error)
    }

    /// Sends what removes something. Where a try was not answered in time it may have removed it all the same, and the next
    /// finds nothing: then it is done.
    pub(super) async fn send_removal(&self, request: RequestBuilder) -> Result<(), Error> {
        match self.send_counted(request, Repeat::Safe).await {
            Err(refused) if !refused.was_repeated || !refused.error.is_absence() => Err(refused.error),
            _ => Ok(()),
        }
    }

    async fn send_counted(&self, mut request: RequestBuilder, repeat: Repeat) -> Result<Response, Refused> {
        let mut was_repeated = false;
        let give_up_at = Instant::now() + Self::PATIENCE;
        let mut backoff = Duration::from_millis(100);
        loop {
            let again = request.try_clone().filter(|_| repeat == Repeat::Safe);
            let error = match self.execute(request).await {
                Ok(response) => match self.accept(response).await {
                    Ok(response) => return Ok(response),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let pause = error.retry_after().unwrap_or(backoff);
            match again {
                Some(again) if error.is_passing() && Instant::now() + pause < give_up_at => request = again,
                _ => return Err(Refused { error, was_repeated }),
            }
            was_repeated = true;
            tokio::time::sleep(pause).await;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }

    pub(super) async fn execute(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| self.broken(error))?;
        self.was_reached.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// Turns an answer that is not a success into the problem that it describes.
    pub(super) async fn accept(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let body = response.bytes().await.unwrap_or_default();
        let problem = Problem::read(status, &body);
        if status == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            return Err(Error::NoKey);
        }
        Err(Error::Problem { problem, retry_after })
    }

    fn broken(&self, error: reqwest::Error) -> Error {
        if error.is_connect() && !self.was_reached.load(Ordering::Relaxed) {
            Error::Unreachable(self.server.to_string())
        } else if error.is_timeout() {
            Error::TimedOut(Self::CALL_LIMIT)
        } else {
            Error::Transport(error)
        }
    }
}

/// Seconds only: the API never answers with a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
