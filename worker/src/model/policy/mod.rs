//! The policy that all calls share, whoever makes them: pauses, circuits, limits, retries.
//!
//! What is known of a provider's account is kept in Redis ([`common::queue::CallAsk`]), so that one worker's setback is
//! everybody's. Every call is admitted first and holds a [`Pass`] until its end, which is reported by a task of its own:
//! nobody waits for that.
//!
//! # Invariants
//! - Redis away: calls are admitted as if nothing were known. What it knows makes calls cheaper, not right.

mod report;
pub mod retry;

use std::sync::Arc;
use std::time::Duration;

use common::message::Usage;
use common::queue::{Admission, CallAsk, CallReport, Obstacle, Queue};
use uuid::Uuid;

use super::Error;
use super::error::{Class, Phase, Reason};
use report::Reports;
pub use retry::RetryPolicy;

/// The pause of an account whose provider wants fewer calls and does not say when.
const PAUSE: Duration = Duration::from_secs(1);

/// Whose limits and pauses calls share: a provider's server with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The provider and a part of a hash of address and key: tells accounts apart and gives nothing away.
    pub name: String,
    /// Calls at once, of all workers together; 0 is no limit.
    pub calls_max: u32,
    /// Tokens a minute, of all workers together; 0 is no limit.
    pub tokens_per_minute: u64,
}

/// The policy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Policy {
    retry: RetryPolicy,
    shared: Option<Arc<Reports>>,
}

impl Policy {
    /// A policy that retries and knows of nobody else.
    pub fn alone(retry: RetryPolicy) -> Self {
        Self { retry, shared: None }
    }

    /// A policy that shares what is known of accounts with all workers. It must be made within the runtime.
    pub fn shared(retry: RetryPolicy, queue: Queue) -> Self {
        Self {
            retry,
            shared: Some(Arc::new(Reports::start(queue))),
        }
    }

    /// How a call is tried again before its first token.
    pub fn retry(&self) -> &RetryPolicy {
        &self.retry
    }

    /// Asks whether a call may begin now that is expected to use so many tokens.
    ///
    /// # Errors
    /// [`Error::Held`] with the time after which it may.
    pub async fn admit(&self, account: &Account, model: &str, tokens: u64) -> Result<Pass, Error> {
        let call = Uuid::now_v7();
        let mut pass = Pass {
            reports: None,
            report: CallReport {
                account: account.name.clone(),
                model: model.to_owned(),
                call,
                is_good: None,
                pause: None,
                more_tokens: 0,
                trial: None,
            },
            tokens,
        };
        let Some(reports) = &self.shared else { return Ok(pass) };
        let ask = CallAsk {
            account: &account.name,
            model,
            call,
            calls_max: account.calls_max,
            tokens_per_minute: account.tokens_per_minute,
            tokens,
        };
        match reports.admit(&ask).await {
            Some(Admission::Denied { by, wait }) => return Err(held(account, by, wait)),
            Some(Admission::Granted { trial }) => {
                pass.report.trial = trial;
                pass.report.more_tokens = number(tokens).saturating_neg();
            }
            None => {}
        }
        if account.calls_max > 0 {
            reports.hold(&pass.report.account, call);
        }
        pass.reports = Some(Arc::clone(reports));
        Ok(pass)
    }
}

fn held(account: &Account, by: Obstacle, wait: Duration) -> Error {
    let reason = match by {
        Obstacle::Pause => "pause",
        Obstacle::Circuit => "circuit",
        Obstacle::Calls => "calls",
        Obstacle::Tokens => "tokens",
    };
    metrics::counter!("hothouse_model_calls_held_total", "reason" => reason).increment(1);
    let provider = account.name.split(':').next().unwrap_or_default().to_owned();
    Error::Held { provider, by, wait }
}

fn number(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// The right to make one call. Dropping it says nothing of the provider and gives its place back, and all that it took when
/// the call was not made.
#[derive(Debug)]
pub struct Pass {
    reports: Option<Arc<Reports>>,
    report: CallReport,
    tokens: u64,
}

impl Pass {
    /// The call is made.
    pub fn begin(&mut self) {
        self.report.more_tokens = 0;
        self.report.trial = None;
    }

    /// Says how the call ended, and what it used as far as is known.
    pub fn end(mut self, error: Option<&Error>, usage: Option<&Usage>) {
        (self.report.is_good, self.report.pause) = verdict(error);
        let used = usage.map(|usage| usage.input_tokens.saturating_add(usage.output_tokens));
        if let Some(used) = used.or_else(|| error.map(|_| 0)) {
            self.report.more_tokens = number(used).saturating_sub(number(self.tokens));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(reports) = self.reports.take() {
            reports.report(self.report.clone());
        }
    }
}

/// What the end of a call says of its provider, and for how long its account is to be left alone.
fn verdict(error: Option<&Error>) -> (Option<bool>, Option<Duration>) {
    let Some(error) = error else { return (Some(true), None) };
    let wanted = error.retry_after();
    match error {
        Error::Refused(refusal) => match refusal.reason {
            Reason::RateLimited => (None, Some(wanted.unwrap_or(PAUSE))),
            Reason::Overloaded | Reason::Server | Reason::Timeout => (Some(false), wanted),
            // It works; what was asked of it is at fault.
            _ => (Some(true), None),
        },
        // How long such an answer is was the caller's choice.
        Error::Timeout {
            phase: Phase::Answer, ..
        } => (None, None),
        error => match error.class() {
            Class::Transient | Class::Timeout => (Some(false), None),
            Class::Permanent | Class::Cancelled => (None, None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_pauses_the_account_and_a_fault_counts_against_it() {
        let day = Duration::from_hours(24);
        assert_eq!(verdict(None), (Some(true), None));
        assert_eq!(
            verdict(Some(&Error::refused(Reason::RateLimited, None))),
            (None, Some(PAUSE))
        );
        assert_eq!(
            verdict(Some(&Error::refused(Reason::RateLimited, Some(day)))),
            (None, Some(Duration::from_hours(1)))
        );
        assert_eq!(
            verdict(Some(&Error::refused(Reason::Overloaded, Some(PAUSE)))),
            (Some(false), Some(PAUSE))
        );
        assert_eq!(
            verdict(Some(&Error::refused(Reason::InvalidRequest, None))),
            (Some(true), None)
        );
        assert_eq!(verdict(Some(&Error::Cut(None))), (Some(false), None));
        assert_eq!(verdict(Some(&Error::Cancelled)), (None, None));
        let late = |phase| Error::Timeout { phase, limit: PAUSE };
        assert_eq!(verdict(Some(&late(Phase::FirstByte))), (Some(false), None));
        assert_eq!(
            verdict(Some(&late(Phase::Answer))),
            (None, None),
            "it says nothing of the provider"
        );
    }
}
