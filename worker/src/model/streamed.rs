//! Requests of ours, answered with events.

use common::message::Usage;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::ledger::Size;
use super::open::{Ask, Begun, Caller, Failed, OpenCall, Setback, begin};
use super::{Error, ModelName, ModelProvider, ModelRequest, ModelStream};

/// An answer that has begun.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Opened {
    /// The model that answers.
    pub model: ModelName,
    /// Its answer, whole.
    pub stream: ModelStream,
    /// To be ended when the answer is over.
    pub call: OpenCall,
}

/// Asks the first of `models`, and after it the others, until one begins to answer.
///
/// Every failed call is told to `on_setback` before what comes next. `cancel` ends it at any point.
///
/// # Errors
/// That of the last model asked, [`Error::NoModel`] for an empty list, or [`Error::Cancelled`].
pub async fn open(
    caller: &Caller,
    models: &[ModelName],
    request: &ModelRequest,
    on_setback: &mut (dyn FnMut(&Setback<'_>) + Send),
    cancel: &CancellationToken,
) -> Result<Opened, Error> {
    let begun = Box::pin(begin(caller, models, &Request(request), on_setback, cancel)).await?;
    let Begun { model, answer, open } = begun;
    Ok(Opened {
        model,
        stream: answer,
        call: open,
    })
}

struct Request<'r>(&'r ModelRequest);

impl Ask for Request<'_> {
    type Answer = ModelStream;

    fn size(&self) -> Size {
        Size {
            input_bytes: self.0.bytes(),
            output_tokens_max: self.0.max_output_tokens,
            shrinks: true,
        }
    }

    fn ask<'a>(
        &'a self,
        provider: &'a dyn ModelProvider,
        model: &'a ModelName,
        held: Option<u32>,
    ) -> BoxFuture<'a, Result<ModelStream, Failed>> {
        async move {
            let Some(output_tokens_max) = held.filter(|most| *most < self.0.max_output_tokens) else {
                return first_token(provider, model, self.0).await;
            };
            let smaller = ModelRequest {
                max_output_tokens: output_tokens_max,
                ..self.0.clone()
            };
            first_token(provider, model, &smaller).await
        }
        .boxed()
    }
}

/// The answer once its first content is there, with what came before it; else the error and the usage reported so far.
async fn first_token(
    provider: &dyn ModelProvider,
    model: &ModelName,
    request: &ModelRequest,
) -> Result<ModelStream, Failed> {
    let mut rest = provider
        .stream(model.model(), request)
        .await
        .map_err(|error| (error, None))?;
    let mut usage: Option<Usage> = None;
    let mut head = Vec::new();
    loop {
        let event = match rest.next().await {
            None => return Err((Error::Cut(None), usage)),
            Some(Err(error)) => return Err((error, usage)),
            Some(Ok(event)) => event,
        };
        if let super::ModelEvent::Usage(snapshot) = &event {
            usage.get_or_insert_default().merge_snapshot(snapshot);
        }
        let is_content = event.is_content();
        head.push(Ok(event));
        if is_content {
            return Ok(stream::iter(head).chain(rest).boxed());
        }
    }
}
