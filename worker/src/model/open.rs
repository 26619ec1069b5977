//! Asking until somebody answers: retries and fallback, before the first token only.

use std::time::Duration;

use common::message::Usage;
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{Error, ModelEvent, ModelName, ModelRequest, ModelStream, Providers, RetryPolicy};

/// An answer that has begun.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Opened {
    /// The model that answers.
    pub model: ModelName,
    /// Its answer, whole.
    pub stream: ModelStream,
}

/// A call that failed before its first token, and what is done about it.
#[derive(Debug)]
pub struct Setback<'a> {
    /// The model that was asked.
    pub model: &'a ModelName,
    /// Why it failed.
    pub error: &'a Error,
    /// What the provider reported to have counted before it failed: money spent all the same.
    pub usage: Option<Usage>,
    /// What comes next.
    pub next: Next<'a>,
}

/// What comes after a call that failed before its first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// The same model again after a pause.
    Retry {
        /// The pause.
        pause: Duration,
    },
    /// The agent's next model, at once.
    FallBack {
        /// That model.
        to: &'a ModelName,
    },
    /// Nothing: the error is the answer.
    GiveUp,
}

/// Asks the first of `models`, and after it the others, until one begins to answer.
///
/// Every failed call is told to `on_setback` before what comes next. `cancel` ends it at any point.
///
/// # Errors
/// That of the last model asked, [`Error::NoModel`] for an empty list, or [`Error::Cancelled`].
pub async fn open(
    providers: &Providers,
    models: &[ModelName],
    request: &ModelRequest,
    policy: &RetryPolicy,
    on_setback: &mut (dyn FnMut(&Setback<'_>) + Send),
    cancel: &CancellationToken,
) -> Result<Opened, Error> {
    let mut rest = models.iter();
    let mut model = rest.next().ok_or(Error::NoModel)?;
    let mut retries = 0;
    loop {
        let asked = cancel.run_until_cancelled(first_token(providers, model, request)).await;
        let (error, usage) = match asked {
            None => return Err(Error::Cancelled),
            Some(Ok(stream)) => {
                return Ok(Opened {
                    model: model.clone(),
                    stream,
                });
            }
            Some(Err(failed)) => failed,
        };
        let next = match policy.pause(retries, &error, rand::random()) {
            Some(pause) => Next::Retry { pause },
            None if error.may_fall_back() => rest.next().map_or(Next::GiveUp, |to| Next::FallBack { to }),
            None => Next::GiveUp,
        };
        tracing::warn!(%model, error = &error as &dyn std::error::Error, ?next, "a model call failed before its answer");
        metrics::counter!("hothouse_model_setbacks_total", "provider" => model.provider().to_owned()).increment(1);
        on_setback(&Setback {
            model,
            error: &error,
            usage,
            next,
        });
        match next {
            Next::GiveUp => return Err(error),
            Next::FallBack { to } => (model, retries) = (to, 0),
            Next::Retry { pause } => {
                retries += 1;
                if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return Err(Error::Cancelled);
                }
            }
        }
    }
}

/// The answer once its first content is there, with what came before it; else the error and the usage reported so far.
async fn first_token(
    providers: &Providers,
    model: &ModelName,
    request: &ModelRequest,
) -> Result<ModelStream, (Error, Option<Usage>)> {
    let provider = providers.of(model).map_err(|error| (error, None))?;
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
        if let ModelEvent::Usage(snapshot) = &event {
            usage.get_or_insert_default().merge_snapshot(snapshot);
        }
        let is_content = event.is_content();
        head.push(Ok(event));
        if is_content {
            return Ok(stream::iter(head).chain(rest).boxed());
        }
    }
}
