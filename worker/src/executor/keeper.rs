//! Keeping a sandbox alive as long as its lease, and not longer; and hearing that the attempt should stop.

use std::future::Future;
use std::time::Instant;

use common::job::decision::Outcome;
use common::job::{Failure, FailureCode};
use tokio::sync::watch;

use super::Ended;
use crate::consumer::held::{Orders, Stop, stopped};
use crate::sandbox::{self, Lost, Sandbox};

/// The attempt was told to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped(pub(super) Stop);

impl Stopped {
    /// Whether the attempt belongs to somebody else by now.
    pub(super) fn is_lost(self) -> bool {
        matches!(self.0, Stop::Lost)
    }

    /// How the attempt ends then.
    pub(super) fn ended(self) -> Ended {
        let outcome = match self.0 {
            Stop::Cancel => Outcome::Cancelled,
            // A lost attempt settles nothing; the outcome is not used.
            Stop::Drain | Stop::Lost => Outcome::Interrupted,
        };
        Ended::with(outcome)
    }
}

/// The orders of an attempt, obeyed.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: watch::Receiver<Orders>,
}

impl Keeper {
    pub(super) fn new(orders: watch::Receiver<Orders>) -> Self {
        Self { orders }
    }

    /// Runs `work` unless the attempt is told to stop.
    pub(super) async fn until_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::select! {
            stop = stopped(&mut self.orders) => Err(Stopped(stop)),
            done = work => Ok(done),
        }
    }

    /// Gives a sandbox its first lease, before anything is asked of it beside [`Self::keep`].
    pub(super) async fn begin(&mut self, sandbox: &Sandbox) -> Result<(), sandbox::Error> {
        let run_until = self.orders.borrow_and_update().run_until;
        sandbox
            .extend_lease(run_until.saturating_duration_since(Instant::now()))
            .await
    }

    /// Runs `work` in a sandbox and forwards the lease to it before it begins, and each renewal. When the attempt is told
    /// to stop, `work` is dropped, which kills what it runs.
    pub(super) async fn keep<T>(&mut self, sandbox: &Sandbox, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let ended = self.follow(sandbox, work, Some).await;
        ended.map_err(Stopped)
    }

    /// Runs `work` in a sandbox and forwards each renewal of the lease, whatever the attempt is told, but that it is not
    /// this worker's any more: then there is no answer.
    pub(super) async fn finish<T>(&mut self, sandbox: &Sandbox, work: impl Future<Output = T>) -> Option<T> {
        let ended = self.follow(sandbox, work, |stop| (stop == Stop::Lost).then_some(stop));
        ended.await.ok()
    }

    /// Runs `work` until an order comes that `ends` it. A sandbox that is gone, or that is found to be silent, is what
    /// `work` will say.
    async fn follow<T>(
        &mut self,
        sandbox: &Sandbox,
        work: impl Future<Output = T>,
        ends: impl Fn(Stop) -> Option<Stop>,
    ) -> Result<T, Stop> {
        let watch = async {
            sandbox.watch().await;
            std::future::pending::<()>().await;
        };
        tokio::pin!(work, watch);
        loop {
            let orders = *self.orders.borrow_and_update();
            if let Some(stop) = orders.stop.and_then(&ends) {
                return Err(stop);
            }
            let run_on = orders.run_until.saturating_duration_since(Instant::now());
            // Beside the rest: a pipe that takes nothing must not keep an order from being heard.
            let extend = async {
                drop(sandbox.extend_lease(run_on).await);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                // The first lease goes before what `work` asks for, and with it.
                biased;
                changed = self.orders.changed() => if changed.is_err() {
                    return Ok(work.await);
                },
                () = extend => {}
                done = &mut work => return Ok(done),
                () = &mut watch => {}
            }
        }
    }
}

/// How the system says that a disk is full, in what an init tells.
pub(super) const NO_SPACE: &str = "No space left";

/// What an init refused.
fn refused(reason: &str) -> Failure {
    let code = if reason.contains(NO_SPACE) {
        FailureCode::DiskFull
    } else {
        FailureCode::InvalidInput
    };
    Failure::new(code, reason)
}

/// What a sandbox's error means for the job.
pub(super) fn sandbox_failure(error: &sandbox::Error) -> Failure {
    match error {
        sandbox::Error::Files { reason } => refused(reason),
        sandbox::Error::TooLarge { .. } => Failure::new(FailureCode::InvalidInput, error.to_string()),
        sandbox::Error::Refused(failure) if !error.is_transient() => refused(&failure.message),
        _ => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            tracing::warn!(%error, cause, "a sandbox failed");
            let message = match error {
                sandbox::Error::Lost(Lost::Silent(_)) => "the sandbox stopped answering while the job ran in it",
                _ => "the sandbox failed while the job ran in it",
            };
            Failure::new(FailureCode::SandboxFailed, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_which_there_is_no_room_are_a_full_disk() {
        let files = |reason: &str| sandbox::Error::Files {
            reason: reason.to_owned(),
        };
        let start = |message: &str| {
            sandbox::Error::Refused(hothouse_protocol::Failure {
                code: sandbox::FailureCode::Invalid,
                message: message.to_owned(),
            })
        };
        for (error, code) in [
            (
                files("\"a\": No space left on device (os error 28)"),
                FailureCode::DiskFull,
            ),
            (files("\"a\" is not a glob"), FailureCode::InvalidInput),
            (
                start("cannot write the file \"a\": No space left on device"),
                FailureCode::DiskFull,
            ),
            (
                start("cannot write the file \"a\": Is a directory"),
                FailureCode::InvalidInput,
            ),
        ] {
            assert_eq!(sandbox_failure(&error).code, code, "{error}");
        }
    }
}
