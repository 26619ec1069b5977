//! Running a noop: nothing, or nothing for a while.

use common::job::decision::Outcome;
use common::job::noop::NoopInput;
use common::job::{Failure, FailureCode};
use tokio::time::{sleep, timeout};

use super::{Context, Ended};
use crate::consumer::held::{Stop, stopped};

pub(super) async fn run(mut context: Context) -> Ended {
    let done = || Ended::succeeded(b"{}".to_vec());
    if context.input == b"{}" {
        return done();
    }
    let input: NoopInput = serde_json::from_slice(&context.input).unwrap_or_default();
    let limit = std::time::Duration::from_millis(context.job.timeout_ms);
    let ended = tokio::select! {
        stop = stopped(&mut context.orders) => Err(stop),
        slept = timeout(limit, sleep(input.duration)) => Ok(slept),
    };
    match ended {
        Ok(Ok(())) => done(),
        Ok(Err(_elapsed)) => Ended::failed(Failure::new(FailureCode::Timeout, "it took longer than its timeout")),
        Err(Stop::Cancel) => Ended::with(Outcome::Cancelled),
        Err(Stop::Drain | Stop::Lost) => Ended::given_back(),
    }
}
