//! Accounts of model providers: what all workers know of a key, so that one worker's setback is everybody's.
//!
//! An account is a provider's server with one key. It may be paused, because the provider asked for that; each of its
//! models has a circuit that opens when calls fail, and is tried by one call at a time until one succeeds; and an
//! operator may limit its calls at once and its tokens a minute.
//!
//! | key below the root | holds |
//! |---|---|
//! | `m:<account>` | hash: paused till, level of the minute's tokens and when it was that |
//! | `m:<account>/<model>` | hash: circuit open till, how the last calls ended |
//! | `m:<account>:live` | sorted set: call → when its place passes unless it is renewed |
//!
//! # Invariants
//! - Nothing here is needed for correctness: after a wipe every circuit is closed and every account free.

use std::time::Duration;

use uuid::Uuid;

use super::{Error, Queue, Shard};

/// How long a call's place holds unless it is renewed.
pub const PLACE_TTL: Duration = Duration::from_mins(1);

/// How long a circuit stays open, and how long its trial may take before another call tries.
pub const OPEN: Duration = Duration::from_secs(15);

/// Failures in a row that open a circuit.
const IN_A_ROW: u32 = 5;

/// Failures of the last twenty calls that open a circuit.
const OF_TWENTY: u32 = 10;

/// A call that would begin.
#[derive(Clone, Debug)]
pub struct CallAsk<'a> {
    /// Whose limits it shares.
    pub account: &'a str,
    /// Its model.
    pub model: &'a str,
    /// Names the call.
    pub call: Uuid,
    /// Calls of the account at once; 0 is no limit.
    pub calls_max: u32,
    /// Tokens of the account in a minute; 0 is no limit.
    pub tokens_per_minute: u64,
    /// Tokens that it is expected to use.
    pub tokens: u64,
}

/// Whether a call may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Granted {
        /// The trial of an open circuit that it is.
        trial: Option<Trial>,
    },
    /// Not yet.
    Denied {
        /// What stands in its way.
        by: Obstacle,
        /// How long it does, as far as is known.
        wait: Duration,
    },
}

/// The one call that tries an open circuit, by the time until which it is the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial(u64);

/// What stands in a call's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The provider asked that its account be left alone.
    Pause,
    /// The circuit of the model is open: calls kept failing.
    Circuit,
    /// As many calls as may be are under way.
    Calls,
    /// The minute's tokens are used up.
    Tokens,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallReport {
    /// Whose limits it shared.
    pub account: String,
    /// Its model.
    pub model: String,
    /// Names the call.
    pub call: Uuid,
    /// Whether it speaks for or against the provider; none when it says nothing of it.
    pub is_good: Option<bool>,
    /// How long the provider wants its account left alone.
    pub pause: Option<Duration>,
    /// Tokens that it used beyond those that it was admitted with; negative when it used fewer.
    pub more_tokens: i64,
    /// The trial that it gives to another, because it was never made.
    pub trial: Option<Trial>,
}

impl Queue {
    /// Asks whether a call may begin.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn admit_call(&self, ask: &CallAsk<'_>) -> Result<Admission, Error> {
        let mut invocation = self
            .inner
            .scripts
            .admit
            .key(self.root(self.shard_of_account(ask.account)));
        invocation
            .arg(self.clock_offset_ms())
            .arg(ask.account)
            .arg(ask.model)
            .arg(ask.call.to_string())
            .arg(ask.calls_max)
            .arg(ask.tokens_per_minute)
            .arg(ask.tokens)
            .arg(ms(PLACE_TTL))
            .arg(ms(OPEN));
        let (code, ms): (u8, u64) = invocation.invoke_async(&mut self.link().await?).await?;
        let by = match code {
            0 => {
                let trial = (ms > 0).then_some(Trial(ms));
                return Ok(Admission::Granted { trial });
            }
            1 => Obstacle::Pause,
            2 => Obstacle::Circuit,
            3 => Obstacle::Calls,
            _ => Obstacle::Tokens,
        };
        let wait = Duration::from_millis(ms);
        Ok(Admission::Denied { by, wait })
    }

    /// Says what became of a call. Answers whether that opened its model's circuit.
    ///
    /// # Errors
    /// When Redis is away: the call's place passes by itself.
    pub async fn report_call(&self, report: &CallReport) -> Result<bool, Error> {
        let verdict = match report.is_good {
            Some(true) => "g",
            Some(false) => "b",
            None => "n",
        };
        let mut invocation = self
            .inner
            .scripts
            .report
            .key(self.root(self.shard_of_account(&report.account)));
        invocation
            .arg(self.clock_offset_ms())
            .arg(&report.account)
            .arg(&report.model)
            .arg(report.call.to_string())
            .arg(verdict)
            .arg(report.pause.map_or(0, ms))
            .arg(report.more_tokens)
            .arg(ms(OPEN))
            .arg(IN_A_ROW)
            .arg(OF_TWENTY)
            .arg(report.trial.map_or(0, |Trial(until)| until));
        let opened: u8 = invocation.invoke_async(&mut self.link().await?).await?;
        Ok(opened == 1)
    }

    /// Makes the places of calls under way hold longer. A place that has passed stays lost.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn renew_calls(&self, account: &str, calls: &[Uuid]) -> Result<(), Error> {
        let shard = self.shard_of_account(account);
        let mut connection = self.link().await?;
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let now_ms = seconds * 1_000 + micros / 1_000 + self.clock_offset_ms();
        let until = now_ms + i64::try_from(ms(PLACE_TTL)).unwrap_or(i64::MAX);
        let mut command = redis::cmd("ZADD");
        command.arg(self.key(shard, &format!("m:{account}:live"))).arg("XX");
        for call in calls {
            command.arg(until).arg(call.to_string());
        }
        let _added: i64 = command.query_async(&mut connection).await?;
        Ok(())
    }

    /// Accounts belong to no tenant, so they are spread by their names.
    fn shard_of_account(&self, account: &str) -> Shard {
        let hash = crc32fast::hash(account.as_bytes());
        Shard(u16::try_from(hash % u32::from(self.inner.shards)).unwrap_or(0))
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
