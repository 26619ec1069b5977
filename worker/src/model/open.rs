//! Asking until somebody answers: admission, budget, retries and fallback, before the first token only.
//!
//! One loop for everybody who calls models. What is asked is an [`Ask`]: a request of ours, streamed as events, or a call
//! of somebody else's, passed on as it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::clock::Clock;
use common::message::Usage;
use common::store::usage;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::ledger::{BYTES_PER_TOKEN, Entry, Ledger, Size};
use super::policy::{Pass, Policy, RetryPolicy};
use super::price::Prices;
use super::{Class, Error, ModelName, ModelProvider, Providers};

/// With what calls are made. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who runs the models.
    pub providers: Providers,
    /// What all calls share.
    pub policy: Policy,
    /// The books of the attempt.
    pub ledger: Ledger,
}

impl Caller {
    /// One that shares nothing and whose books nobody reads, with the built-in prices.
    ///
    /// # Errors
    /// When the built-in prices cannot be read, which a test rules out.
    pub fn alone(providers: Providers, retry: RetryPolicy, clock: Clock) -> Result<Self, Error> {
        Ok(Self {
            providers,
            policy: Policy::alone(retry),
            ledger: Ledger::unkept(Arc::new(Prices::open(None)?), clock),
        })
    }
}

/// A call that failed before its first token, and what is done about it.
#[derive(Debug)]
pub struct Setback<'a> {
    /// The model that was asked.
    pub model: &'a ModelName,
    /// Why it failed.
    pub error: &'a Error,
    /// What it used all the same: what the provider had counted before it failed, or is taken to have counted.
    pub spent: Option<usage::Call>,
    /// What comes next.
    pub next: Next<'a>,
}

impl fmt::Display for Setback<'_> {
    /// In words for the one who follows the turn.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; ", self.model, self.error.failure().message)?;
        match self.next {
            Next::Retry { pause } => write!(f, "trying again in {} ms", pause.as_millis()),
            Next::FallBack { to } => write!(f, "asking {to} instead"),
            Next::GiveUp => f.write_str("giving up"),
        }
    }
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

/// Why a call failed before its first token, and the usage that was reported until then.
pub(crate) type Failed = (Error, Option<Usage>);

/// Something to ask.
pub(crate) trait Ask: Sync {
    /// An answer that has begun.
    type Answer;

    /// How large it is at most.
    fn size(&self) -> Size;

    /// Asks once, for an answer of at most as many tokens as a budget holds for it, and returns at the first one.
    fn ask<'a>(
        &'a self,
        provider: &'a dyn ModelProvider,
        model: &'a ModelName,
        held: Option<u32>,
    ) -> BoxFuture<'a, Result<Self::Answer, Failed>>;
}

/// An answer that has begun, and what must be told when it ends.
#[derive(Debug)]
pub(crate) struct Begun<T> {
    pub(crate) model: ModelName,
    pub(crate) answer: T,
    pub(crate) open: OpenCall,
}

/// A call under way. Dropping it writes an estimate and says nothing of the provider.
#[derive(Debug)]
pub struct OpenCall {
    pass: Pass,
    entry: Entry,
}

impl OpenCall {
    /// The request goes out.
    fn begin(mut pass: Pass, mut entry: Entry) -> Self {
        pass.begin();
        entry.ask();
        Self { pass, entry }
    }

    /// Tokens that the answer may have, after the budget had its say.
    pub fn output_tokens_max(&self) -> u32 {
        self.entry.output_tokens_max()
    }

    /// Ends it: how, and what it used. Answers what is written down of it.
    pub fn end(self, error: Option<&Error>, usage: Usage) -> usage::Call {
        self.pass.end(error, Some(&usage));
        self.entry.close(usage)
    }
}

/// Asks the first of `models`, and after it the others, until one begins to answer.
///
/// Every failed call is told to `on_setback` before what comes next. `cancel` ends it at any point.
///
/// # Errors
/// That of the last model asked, or of one before it which time may mend where it cannot mend that; [`Error::NoModel`] for
/// an empty list, or [`Error::Cancelled`].
pub(crate) async fn begin<A: Ask>(
    caller: &Caller,
    models: &[ModelName],
    ask: &A,
    on_setback: &mut (dyn FnMut(&Setback<'_>) + Send),
    cancel: &CancellationToken,
) -> Result<Begun<A::Answer>, Error> {
    let mut rest = models.iter();
    let mut model = rest.next().ok_or(Error::NoModel)?;
    let mut patience = Patience::new(caller.policy.retry().retry_after_max);
    let mut retries = 0;
    let mut before: Option<Error> = None;
    loop {
        let failed = match cancel.run_until_cancelled(once(caller, model, ask)).await {
            None => return Err(Error::Cancelled),
            Some(Ok((answer, open))) => {
                let model = model.clone();
                return Ok(Begun { model, answer, open });
            }
            Some(Err(failed)) => failed,
        };
        let (error, spent) = failed;
        let held = match &error {
            Error::Held { wait, .. } => patience.for_another(*wait),
            _ => None,
        };
        let retried = || caller.policy.retry().pause(retries, &error, rand::random());
        let next = match held.or_else(retried) {
            Some(pause) => Next::Retry { pause },
            None if error.may_fall_back() => rest.next().map_or(Next::GiveUp, |to| Next::FallBack { to }),
            None => Next::GiveUp,
        };
        // Waiting for one's turn is no setback, and under a limit it is what most calls do.
        if held.is_none() {
            tell(model, &error, spent, next, on_setback);
        }
        match next {
            Next::GiveUp => return Err(worth_most(before, error)),
            Next::FallBack { to } => {
                before = Some(worth_most(before, error));
                (model, retries) = (to, 0);
            }
            Next::Retry { pause } => {
                retries += u32::from(held.is_none());
                if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return Err(Error::Cancelled);
                }
            }
        }
    }
}

/// What several models' errors come to: one for which waiting is enough rather than one that another try may mend, that
/// rather than a no, and of equals the later. A request that is at fault itself is that whoever is asked.
fn worth_most(before: Option<Error>, error: Error) -> Error {
    let hope = |error: &Error| match error.class() {
        _ if error.wait().is_some() => 2,
        Class::Transient | Class::Timeout => 1,
        Class::Permanent | Class::Cancelled => 0,
    };
    match before {
        Some(before) if error.may_fall_back() && hope(&before) > hope(&error) => before,
        _ => error,
    }
}

fn tell(
    model: &ModelName,
    error: &Error,
    spent: Option<usage::Call>,
    next: Next<'_>,
    on_setback: &mut (dyn FnMut(&Setback<'_>) + Send),
) {
    tracing::warn!(%model, error = error as &dyn std::error::Error, ?next, "a model call failed before its answer");
    metrics::counter!("hothouse_model_setbacks_total", "provider" => model.provider().to_owned()).increment(1);
    on_setback(&Setback {
        model,
        error,
        spent,
        next,
    });
}

/// One try: admitted, held against the budget, asked.
async fn once<A: Ask>(
    caller: &Caller,
    model: &ModelName,
    ask: &A,
) -> Result<(A::Answer, OpenCall), (Error, Option<usage::Call>)> {
    let nothing = |error| (error, None);
    let provider = caller.providers.of(model).map_err(nothing)?;
    let size = ask.size();
    let tokens = size.input_bytes.div_ceil(BYTES_PER_TOKEN);
    let admitted = caller.policy.admit(provider.account(), model.model(), tokens).await;
    let pass = admitted.map_err(nothing)?;
    let entry = caller.ledger.open(model, size).await.map_err(nothing)?;
    let open = OpenCall::begin(pass, entry);
    match ask.ask(provider, model, open.entry.held()).await {
        Ok(answer) => Ok((answer, open)),
        Err((error, usage)) => {
            let OpenCall { pass, entry } = open;
            let usage = usage.or_else(|| error.may_have_cost().then(|| entry.estimate()));
            pass.end(Some(&error), usage.as_ref());
            let spent = if let Some(usage) = usage {
                Some(entry.close(usage))
            } else {
                entry.release();
                None
            };
            Err((error, spent))
        }
    }
}

/// How long calls wait in place for their account.
struct Patience {
    left: Duration,
}

impl Patience {
    fn new(longest: Duration) -> Self {
        Self { left: longest }
    }

    /// The wait and a little more, so that not everybody comes back at once; none when patience is at its end.
    fn for_another(&mut self, wait: Duration) -> Option<Duration> {
        let wait = wait + wait.max(Duration::from_millis(20)).mul_f64(rand::random::<f64>() / 4.0);
        self.left = self.left.checked_sub(wait)?;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Reason;

    #[test]
    fn what_time_may_mend_outlives_what_it_cannot() {
        let limited = || Error::refused(Reason::RateLimited, Some(Duration::from_secs(30)));
        let unknown = || Error::UnknownProvider {
            provider: "b".to_owned(),
            known: String::new(),
        };
        let what = |before: Error, error| worth_most(Some(before), error).failure().message;
        for no in [
            unknown,
            || Error::refused(Reason::Authentication, None),
            || Error::refused(Reason::NotFound, None),
        ] {
            assert_eq!(what(limited(), no()), limited().failure().message);
            assert_eq!(what(Error::Cut(None), no()), Error::Cut(None).failure().message);
            assert_eq!(what(unknown(), no()), no().failure().message);
        }
        assert_eq!(what(limited(), Error::Cut(None)), limited().failure().message);
        assert_eq!(what(unknown(), limited()), limited().failure().message);
        let at_fault = || Error::refused(Reason::InvalidRequest, None);
        assert_eq!(what(limited(), at_fault()), at_fault().failure().message);
    }
}
