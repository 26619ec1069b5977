//! One call: asked along the agent's models until somebody begins to answer, and passed on from there.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use common::message::Usage;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::answer::Refusal;
use super::check::Asked;
use super::frames::Frames;
use super::splice::{replaced, replaced_within};
use super::tally::Tally;
use crate::model::ledger::Size;
use crate::model::server::{Bytestream, Call, Reply};
use crate::model::wire::{Route, Wire};
use crate::model::{Ask, Begun, Caller, Error, Failed, ModelName, ModelProvider, OpenCall, Setback, begin};

/// The least that a provider of Messages lets a model think.
const THINKING_TOKENS_MIN: u32 = 1_024;

/// A request that may be passed on.
pub(super) struct Request<'a> {
    pub(super) route: Route,
    pub(super) asked: Asked,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// The models that may answer it, the one that was asked for first.
    pub(super) models: Vec<&'a ModelName>,
    /// Whether a shorter answer is asked for where a budget has not enough left.
    pub(super) shrinks: bool,
}

/// Half of a short answer, and none at all where a provider takes no less.
fn shorter_thinking(output_tokens_max: u32) -> serde_json::Value {
    match output_tokens_max / 2 {
        tokens @ THINKING_TOKENS_MIN.. => serde_json::json!({"type": "enabled", "budget_tokens": tokens}),
        _ => serde_json::json!({"type": "disabled"}),
    }
}

/// What calls are made with.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) caller: &'a Caller,
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

    fn bytes(&self) -> u64 {
        u64::try_from(self.body.len()).unwrap_or(u64::MAX)
    }

    /// Whether the gateway asks for usage where the program did not.
    fn hides_usage(&self) -> bool {
        self.wire() == Wire::OpenAi && self.asked.is_stream && !self.asked.wants_usage
    }

    /// The call as `model` gets it: byte for byte, but for the model's name, the wish for usage, and where a budget holds so
    /// many tokens for it, the length of an answer that would be longer or of which the request says nothing.
    fn call(&self, model: &ModelName, provider: &dyn ModelProvider, held: Option<u32>) -> Result<Call, Error> {
        let mut body = self.body.clone();
        if self.asked.model != model.model() {
            let name = serde_json::Value::from(model.model()).to_string();
            body = replaced(&body, "model", &name).ok_or_else(malformed)?;
        }
        if self.hides_usage() {
            body = replaced_within(&body, "stream_options", "include_usage", "true").ok_or_else(malformed)?;
        }
        if let Some(most) = held {
            body = self.no_longer_than(most, provider.limit_name(), body)?;
        }
        Ok(Call {
            route: self.route,
            headers: self.headers.clone(),
            body,
            is_streamed: self.asked.is_stream,
        })
    }

    fn no_longer_than(&self, most: u32, name: &str, body: Bytes) -> Result<Bytes, Error> {
        if self.asked.names_limit && most >= self.asked.output_tokens_max {
            return Ok(body);
        }
        let each = most / self.asked.choices;
        let body = replaced(&body, name, &each.to_string()).ok_or_else(malformed)?;
        // Thinking is part of an answer and has to be shorter than it.
        if self
            .asked
            .thinking_tokens
            .is_some_and(|tokens| tokens >= u64::from(each))
        {
            let thinking = shorter_thinking(each).to_string();
            return replaced(&body, "thinking", &thinking).ok_or_else(malformed);
        }
        Ok(body)
    }
}

fn malformed() -> Error {
    Error::Malformed {
        what: "the request is no JSON object".to_owned(),
    }
}

/// Asks the first model, and after it the others, until one begins to answer. Only before the first token: what the
/// program has read cannot be taken back.
pub(super) async fn make(request: &Request<'_>, means: Means<'_>) -> Result<Answered, Refusal> {
    if !request.route.is_answered_by_a_model() {
        return plain(request, means).await.map_err(|error| Refusal::from(&error));
    }
    let models: Vec<ModelName> = request.models.iter().map(|model| (*model).clone()).collect();
    let mut on_setback = |setback: &Setback<'_>| means.account.setback(setback);
    // Nobody cancels it: a program that goes away drops it.
    let cancel = CancellationToken::new();
    let begun = Box::pin(begin(means.caller, &models, request, &mut on_setback, &cancel)).await;
    let Begun { model, answer, open } = begun.map_err(|error| {
        means.account.refused(&error);
        Refusal::from(&error)
    })?;
    let Beginning { head, first } = answer;
    let body = match first {
        First::Whole(body, usage) => {
            means.account.end(open, &model, None, usage);
            Content::Whole(body)
        }
        First::Stream(frames, relay) => {
            let metered = Metered {
                relay,
                open: Some((open, Arc::clone(means.account), model)),
            };
            Content::Stream(stream::iter(frames.into_iter().map(Ok)).chain(rest(metered)).boxed())
        }
    };
    Ok(Answered { body, ..head })
}

/// A call that no model answers, and that costs nothing: asked once.
async fn plain(request: &Request<'_>, means: Means<'_>) -> Result<Answered, Error> {
    let model = request.models.first().ok_or(Error::NoModel)?;
    let provider = means.caller.providers.of(model)?;
    let reply = provider.forward(request.call(model, provider, None)?).await?;
    let head = head_of(&reply);
    let body = whole(reply.body).await.map_err(|(error, _)| error)?;
    let body = Content::Whole(body);
    Ok(Answered { body, ..head })
}

/// How an answer begins.
pub(super) struct Beginning {
    head: Answered,
    first: First,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one a call, and it is taken apart at once"
)]
enum First {
    /// All of it, and what it used.
    Whole(Bytes, Usage),
    /// What came up to its first content, and where the rest is.
    Stream(Vec<Bytes>, Relay),
}

impl Ask for Request<'_> {
    type Answer = Beginning;

    fn size(&self) -> Size {
        Size {
            input_bytes: self.bytes(),
            output_tokens_max: self.asked.output_tokens_max,
            shrinks: self.shrinks,
        }
    }

    fn ask<'a>(
        &'a self,
        provider: &'a dyn ModelProvider,
        model: &'a ModelName,
        held: Option<u32>,
    ) -> BoxFuture<'a, Result<Beginning, Failed>> {
        async move {
            let call = self.call(model, provider, held).map_err(|error| (error, None))?;
            let reply = provider.forward(call).await.map_err(|error| (error, None))?;
            let head = head_of(&reply);
            let tally = Tally::new(model, self.wire(), self.bytes(), self.hides_usage());
            let first = if reply.is_stream() {
                first_content(reply, tally).await?
            } else {
                match whole(reply.body).await {
                    Ok(body) => {
                        let usage = tally.of_document(&body);
                        First::Whole(body, usage)
                    }
                    // What came of it was written, and is counted.
                    Err((error, begun)) => {
                        let usage = (!begun.is_empty()).then(|| tally.of_document(&begun));
                        return Err((error, usage));
                    }
                }
            };
            Ok(Beginning { head, first })
        }
        .boxed()
    }
}

fn head_of(reply: &Reply) -> Answered {
    Answered {
        status: reply.status,
        content_type: reply.content_type.clone(),
        request_id: reply.request_id.clone(),
        body: Content::Whole(Bytes::new()),
    }
}

/// All of a body, or what came of it; its length is watched where it comes from.
async fn whole(mut bytes: Bytestream) -> Result<Bytes, (Error, Bytes)> {
    let mut body = BytesMut::new();
    while let Some(chunk) = bytes.next().await {
        match chunk {
            Ok(chunk) => body.extend_from_slice(&chunk),
            Err(error) => return Err((error, body.freeze())),
        }
    }
    Ok(body.freeze())
}

/// A stream up to its first content.
async fn first_content(reply: Reply, tally: Tally) -> Result<First, Failed> {
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
                    return Ok(First::Stream(head, relay));
                }
            }
            Some(Err(error)) => break error,
            None => break Error::Cut(None),
        }
    };
    Err((error, relay.tally.known()))
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

/// A stream under way. Dropping it ends the call with what was used so far: a program that goes away in the middle has
/// used what it has used.
struct Metered {
    relay: Relay,
    open: Option<(OpenCall, Arc<Account>, ModelName)>,
}

impl Metered {
    fn end(&mut self, error: Option<&Error>) {
        if let Some((call, account, model)) = self.open.take() {
            account.end(call, &model, error, self.relay.tally.usage());
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.end(Some(&Error::Cancelled));
    }
}

/// What follows the first content: every frame as it came, errors that frames report included.
fn rest(metered: Metered) -> impl Stream<Item = Result<Bytes, Error>> {
    stream::unfold(metered, |mut metered| async move {
        loop {
            return match metered.relay.frame().await {
                Some(Ok(frame)) => match metered.relay.tally.frame(&frame) {
                    Ok(seen) if seen.is_hidden => continue,
                    Ok(_) => Some((Ok(frame), metered)),
                    Err(error) => {
                        metered.end(Some(&error));
                        Some((Ok(frame), metered))
                    }
                },
                Some(Err(error)) => {
                    metered.end(Some(&error));
                    Some((Err(error), metered))
                }
                None if metered.relay.tally.is_whole() => {
                    metered.end(None);
                    None
                }
                // The end of a cut answer must not look like the end of a whole one.
                None => {
                    let error = Error::Cut(None);
                    metered.end(Some(&error));
                    Some((Err(error), metered))
                }
            };
        }
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::check::{Named, check};
    use super::super::strict;
    use super::*;
    use crate::model::openai::OpenAi;
    use crate::model::server::ServerSettings;

    #[rstest]
    #[case::nothing_is_held(json!({}), None, json!({}))]
    #[case::nothing_is_said(json!({}), Some(900), json!({"max_completion_tokens": 900}))]
    #[case::of_several(json!({"n": 3}), Some(900), json!({"n": 3, "max_completion_tokens": 300}))]
    #[case::null(json!({"max_completion_tokens": null}), Some(900), json!({"max_completion_tokens": 900}))]
    #[case::all_is_held(json!({"max_tokens": 900}), Some(900), json!({"max_tokens": 900}))]
    fn an_answer_of_which_nothing_is_said_is_as_long_as_what_is_held(
        #[case] body: Value,
        #[case] held: Option<u32>,
        #[case] wanted: Value,
    ) {
        let model: ModelName = "openai/m".parse().unwrap();
        let body_of = |mut body: Value| {
            body["model"] = "m".into();
            body
        };
        let body = Bytes::from(body_of(body).to_string());
        let parsed = strict::parse(&body).unwrap();
        let request = Request {
            route: Route::ChatCompletions,
            asked: check(Route::ChatCompletions, &parsed, Named(&[])).unwrap(),
            headers: Vec::new(),
            body: body.clone(),
            models: vec![&model],
            shrinks: false,
        };
        let public = OpenAi::new("openai", &ServerSettings::default()).unwrap();
        let sent = request.call(&model, &public, held).unwrap().body;
        assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), body_of(wanted));
        let local = ServerSettings {
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            ..ServerSettings::default()
        };
        let local = OpenAi::new("local", &local).unwrap();
        assert_eq!(local.limit_name(), "max_tokens");
    }
}
