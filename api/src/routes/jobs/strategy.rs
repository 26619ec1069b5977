//! What the strategies of concurrency keys decided, for the submitter and for those who give way.

use common::ids::{JobId, TenantId};
use common::store::insert::Accepted;

use crate::problem::{Code, Problem};
use crate::state::App;

/// The answer to a job whose key has no place, and whose strategy is `reject`.
pub(crate) fn rejected() -> Problem {
    Problem::new(
        Code::ConcurrencyLimit,
        "as many jobs of this concurrency key are open as its limit allows",
    )
}

/// What became of a submission of one job.
pub(super) async fn admitted(app: &App, outcome: Result<Accepted, Problem>) -> Result<(), Problem> {
    match outcome? {
        Accepted::Decided(decided) if !decided.rejected.is_empty() => Err(rejected()),
        Accepted::Decided(decided) => {
            make_way(app, &decided.superseded).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Stops the jobs that give way. That they must is committed: what fails here is done by the redispatch duty.
pub(crate) async fn make_way(app: &App, superseded: &[(TenantId, JobId)]) {
    if superseded.is_empty() {
        return;
    }
    // Boxed: a submission would otherwise carry all of a cancel from its beginning, and hardly any needs one.
    Box::pin(app.canceller().make_way(superseded, app.clock().now())).await;
    for (_, id) in superseded {
        app.hub().changed(*id);
    }
}
