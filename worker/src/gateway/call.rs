//! One call: asked along the agent's models until somebody begins to answer, and passed on from there.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};

use super::account::Account;
use super::answer::Refusal;
use super::check::Asked;
use super::frames::Frames;
use super::splice::replaced;
use super::tally::Tally;
use crate::model::server::{Bytestream, Call, Reply};
use crate::model::wire::{Route, Wire};
use crate::model::{Error, ModelName, Providers, RetryPolicy};

/// What makes a provider of Chat Completions report usage at the end of a stream.
const WITH_USAGE: &str = r#"{"include_usage":true}"#;

/// A request that may be passed on.
pub(super) struct Request<'a> {
    pub(super) route: Route,
    pub(super) asked: Asked,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// The models that may answer it, the one that was asked for first.
    pub(super) models: Vec<&'a ModelName>,
}

/// What calls are made with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) providers: &'a Providers,
    pub(super) retry: &'a RetryPolicy,
    pub(super) account: &'a Arc<Account>,
}

/// An answer that has begun well.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) request_id: Option<String>,
    pub(super) body: Content,
}

/// Its body.
pub(super) enum Content {
    /// All of it.
    Whole(Bytes),
    /// As it comes.
    Stream(Bytestream),
}

impl Request<'_> {
    fn wire(&self) -> Wire {
        match self.route {
            Route::ChatCompletions => Wire::OpenAi,
            _ => Wire::Anthropic,
        }
    }

    /// Whether the gateway asks for usage where the program did not.
    fn hides_usage(&self) -> bool {
        self.wire() == Wire::OpenAi && self.asked.is_stream && !self.asked.wants_usage
    }

    /// The call as `model` gets it: byte for byte, but for the model's name and the wish for usage.
    fn call(&self, model: &ModelName) -> Option<Call> {
        let mut body = self.body.clone();
        if self.asked.model != model.model() {
            let name = serde_json::to_string(model.model()).ok()?;
            body = replaced(&body, "model", &name)?;
        }
        if self.hides_usage() {
            body = replaced(&body, "stream_options", WITH_USAGE)?;
        }
        Some(Call {
            route: self.route,
            headers: self.headers.clone(),
            body,
        })
    }
}

/// Asks the first model, and after it the others, until one begins to answer. Only before the first token: what the
/// program has read cannot be taken back.
pub(super) async fn make(request: &Request<'_>, means: Means<'_>) -> Result<Answered, Refusal> {
    let mut models = request.models.iter();
    let mut model = *models.next().ok_or_else(|| Refusal::from(&Error::NoModel))?;
    let mut retries = 0;
    loop {
        let error = match begin(request, model, means).await {
            Ok(answered) => return Ok(answered),
            Err(error) => error,
        };
        metrics::counter!("hothouse_model_setbacks_total", "provider" => model.provider().to_owned()).increment(1);
        let said = error.failure().message;
        if let Some(pause) = means.retry.pause(retries, &error, rand::random()) {
            means
                .account
                .tell(&format!("{model}: {said}; trying again in {} ms", pause.as_millis()));
            tokio::time::sleep(pause).await;
            retries += 1;
        } else if let Some(next) = models.next().filter(|_| error.may_fall_back()) {
            means.account.tell(&format!("{model}: {said}; asking {next} instead"));
            (model, retries) = (*next, 0);
        } else {
            means.account.tell(&format!("{model}: {said}"));
            return Err(Refusal::from(&error));
        }
    }
}

async fn begin(request: &Request<'_>, model: &ModelName, means: Means<'_>) -> Result<Answered, Error> {
    let provider = means.providers.of(model)?;
    let call = request.call(model).ok_or_else(|| Error::Malformed {
        what: "the request is no JSON object".to_owned(),
    })?;
    let reply = provider.forward(call).await?;
    let tally = request
        .route
        .is_answered_by_a_model()
        .then(|| Tally::new(means.account, model, request.wire(), request.hides_usage()));
    let (status, content_type, request_id) = (reply.status, reply.content_type.clone(), reply.request_id.clone());
    let body = match tally {
        Some(tally) if reply.is_stream() => stream_on(reply, tally, means.account, model).await?,
        tally => {
            let body = whole(reply.body).await?;
            if let Some(tally) = tally {
                tally.document(&body);
            }
            Content::Whole(body)
        }
    };
    Ok(Answered {
        status,
        content_type,
        request_id,
        body,
    })
}

/// All of a body; its length is watched where it comes from.
async fn whole(mut bytes: Bytestream) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = bytes.next().await {
        body.extend_from_slice(&chunk?);
    }
    Ok(body.freeze())
}

/// The answer from its first content on, with what came before it.
async fn stream_on(reply: Reply, tally: Tally, account: &Account, model: &ModelName) -> Result<Content, Error> {
    let mut relay = Relay {
        bytes: reply.body,
        frames: Frames::default(),
        tally,
        has_ended: false,
    };
    let mut head = Vec::new();
    let error = loop {
        match relay.next().await {
            Some(Ok((frame, is_content))) => {
                head.push(frame);
                if is_content {
                    let head = stream::iter(head.into_iter().map(Ok));
                    return Ok(Content::Stream(head.chain(rest(relay)).boxed()));
                }
            }
            Some(Err(error)) => break error,
            None => break Error::Cut(None),
        }
    };
    if let Some(usage) = relay.tally.failed() {
        account.write(model, usage);
    }
    Err(error)
}

/// A stream that is read frame by frame.
struct Relay {
    bytes: Bytestream,
    frames: Frames,
    tally: Tally,
    has_ended: bool,
}

impl Relay {
    /// The next frame for the program, and whether it has content. An error that a frame reports is an error here; the
    /// frame itself can be had no more.
    async fn next(&mut self) -> Option<Result<(Bytes, bool), Error>> {
        loop {
            let (frame, seen) = match self.frame().await? {
                Ok(frame) => match self.tally.frame(&frame) {
                    Ok(seen) => (frame, seen),
                    Err(error) => return Some(Err(error)),
                },
                Err(error) => return Some(Err(error)),
            };
            if !seen.is_hidden {
                return Some(Ok((frame, seen.is_content)));
            }
        }
    }

    /// The next frame, whatever it says.
    async fn frame(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(frame) = self.frames.next() {
                return Some(Ok(frame));
            }
            if self.has_ended {
                return None;
            }
            match self.bytes.next().await {
                Some(Ok(bytes)) => self.frames.push(&bytes),
                Some(Err(error)) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.has_ended = true;
                    return self.frames.finish().map(Ok);
                }
            }
        }
    }
}

/// What follows the first content: every frame as it came, errors that frames report included.
fn rest(relay: Relay) -> impl Stream<Item = Result<Bytes, Error>> {
    stream::unfold(relay, |mut relay| async move {
        loop {
            return match relay.frame().await {
                Some(Ok(frame)) => match relay.tally.frame(&frame) {
                    Ok(seen) if seen.is_hidden => continue,
                    _ => Some((Ok(frame), relay)),
                },
                Some(Err(error)) => Some((Err(error), relay)),
                None if relay.tally.is_whole() => None,
                // The end of a cut answer must not look like the end of a whole one.
                None => Some((Err(Error::Cut(None)), relay)),
            };
        }
    })
}
