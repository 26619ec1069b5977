//! Periodic duties: idempotent functions without input that compare what is with what should be.
//!
//! A duty's [`Duty::tick`] does one bounded batch. A failing or panicking tick is logged, counted and tried again at
//! the next interval; it never stops another duty.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// What one tick did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Things that it changed.
    pub changed: u64,
    /// Whether its batch was full, so that the next tick should come at once.
    pub more: bool,
}

/// A periodic duty.
pub trait Duty: Send + Sync {
    /// Its name in logs, metrics and `GET /api/v1/duties`.
    fn name(&self) -> &'static str;

    /// How long to wait between two ticks when the last one left nothing over. Before the first tick it answers the longest
    /// such time.
    fn interval(&self) -> Duration;

    /// Waits until there is a reason to tick before the interval has passed. What happened since the last call counts.
    fn woken(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Does one bounded batch.
    fn tick(&self, now: DateTime<Utc>) -> impl Future<Output = anyhow::Result<Report>> + Send;
}

/// Shortest time between the end of a tick and one that somebody asked for: those who ask at once share a tick.
const WOKEN_PAUSE: Duration = Duration::from_millis(10);

/// Runs a duty until `stop`. `observe` hears of every tick.
pub async fn run(
    duty: impl Duty,
    clock: Clock,
    stop: CancellationToken,
    observe: impl Fn(&'static str, &Result<Report, String>) + Send,
) {
    loop {
        let tick = std::panic::AssertUnwindSafe(duty.tick(clock.now())).catch_unwind();
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            ended = tick => match ended {
                Ok(Ok(report)) => Ok(report),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_) => Err("panic".to_owned()),
            },
        };
        ::metrics::counter!("hothouse_duty_ticks_total", "duty" => duty.name(), "ok" => if outcome.is_ok() { "true" } else { "false" })
            .increment(1);
        if let Err(error) = &outcome {
            tracing::warn!(duty = duty.name(), error, "tick failed");
        }
        observe(duty.name(), &outcome);
        let pause = if outcome.is_ok_and(|report| report.more) {
            Duration::ZERO
        } else {
            duty.interval()
        };
        let woken = async {
            tokio::time::sleep(WOKEN_PAUSE).await;
            duty.woken().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            () = woken => {}
        }
    }
}
