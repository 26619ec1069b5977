//! A sandbox for an exec job: taken from the pool, and said why when that takes long.

use std::time::Duration;

use common::job::event::EventBody;
use common::job::{Failure, FailureCode};

use super::super::Context;
use super::super::keeper::Keeper;
use super::Broken;
use crate::claude::Recipe;
use crate::environment::{Environment, Reuse};
use crate::events::Say;
use crate::pool::{self, KeptFor, Pool, Slot, Who};

/// A job that waits longer is told why.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Whose next job may have the sandbox of this one, where the environment allows that: the user's, or without one the API
/// key's. A job of neither has no such successor.
pub(super) fn owner(context: &Context, environment: &Environment) -> Option<KeptFor> {
    let job = &context.job;
    let who = match (environment.reuse, &job.user_id, job.api_key_id) {
        (Reuse::Never, ..) | (Reuse::User, None, None) => return None,
        (Reuse::User, Some(user), _) => Who::User(user.clone()),
        (Reuse::User, None, Some(key)) => Who::Key(key.uuid()),
    };
    Some(KeptFor {
        tenant_id: job.tenant_id,
        who,
    })
}

/// A sandbox of the job before, which was reset.
pub(super) async fn reused(pool: &Pool, environment: &str, owner: Option<&KeptFor>) -> Option<Slot> {
    Some(pool.check_out_kept(environment, owner?).await?.0)
}

/// Takes a sandbox of the environment, unless the attempt is told to stop.
pub(in super::super) async fn check_out(
    context: &Context,
    keeper: &mut Keeper,
    pool: &Pool,
    (environment, spare): (&str, Option<&Recipe>),
) -> Result<Slot, Broken> {
    let taken = async {
        let slot = async {
            match spare {
                Some(recipe) => pool.check_out_spare(environment, recipe).await,
                None => pool.check_out(environment, None).await,
            }
        };
        tokio::pin!(slot);
        let mut told = None;
        loop {
            tokio::select! {
                slot = &mut slot => return slot,
                () = tokio::time::sleep(TELL_AFTER) => {}
            }
            let reason = Some(reason(pool, environment));
            if told != reason {
                context.events.say(EventBody::Status {
                    phase: "waiting_for_sandbox".to_owned(),
                    detail: reason.clone(),
                });
                told = reason;
            }
        }
    };
    let taken = keeper.until_stopped(taken).await.map_err(Broken::Stopped)?;
    let slot = taken.map_err(|error| broken(&error))?;
    if let Some(why) = slot.why_cold() {
        context.events.say(EventBody::Status {
            phase: "cold_start".to_owned(),
            detail: Some(why.to_owned()),
        });
    }
    Ok(slot)
}

/// Why nothing is warm, as the job's owner may know it.
fn reason(pool: &Pool, environment: &str) -> String {
    let mut statuses = pool.status().into_iter();
    let last_error = statuses
        .find(|status| status.name == environment)
        .and_then(|it| it.last_error);
    last_error.map_or_else(|| "every sandbox is in use".to_owned(), |last| last.told)
}

fn broken(error: &pool::Error) -> Broken {
    tracing::warn!(error = %format!("{error:#}"), "no sandbox");
    match error {
        // For as long as it takes: a job is not failed because a machine is.
        pool::Error::Exhausted {
            last_error: Some(last), ..
        } if last.fault.is_of_machine() => Broken::GivenBack,
        pool::Error::NoSuchEnvironment { .. } => Failure::new(FailureCode::InvalidInput, error.told()).into(),
        _ => Failure::new(FailureCode::SandboxFailed, error.told()).into(),
    }
}
