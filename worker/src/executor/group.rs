//! `group`: submits its jobs, waits for all of them, and collects what came out.
//!
//! What follows is decided by [`common::job::group::next`]; this is the user of waiting to look at when writing another.

use std::time::Duration;

use chrono::{DateTime, Utc};
use common::cancel::OPEN;
use common::ids::JobId;
use common::job::group::{GroupInput, GroupJob, Member, Next, OnFailure, next};
use common::job::wait::{Until, Wait};
use common::job::{Failure, FailureCode, Links, NewJob, StateName, Woken};
use common::store;
use common::store::list::Filter;
use serde::Serialize;

use super::{Context, Ended, unread};

/// Bytes of its jobs' results that a group's own result repeats.
const RESULTS_MAX: u64 = 4 << 20;

/// The result of a group.
#[derive(Serialize)]
struct GroupResult {
    succeeded: usize,
    failed: usize,
    cancelled: usize,
    jobs: Vec<Member>,
}

/// Runs one attempt of a group: the first submits, the others look. One that cannot look is given back, and looks again.
pub(super) async fn run(context: Context) -> Ended {
    let input: GroupInput = match serde_json::from_slice(&context.input) {
        Ok(input) => input,
        Err(error) => return Ended::failed(Failure::new(FailureCode::InvalidInput, error.to_string())),
    };
    if context.job.waits_for.is_none() {
        return submit(&context, input);
    }
    match look(&context, input.on_failure).await {
        Ok(ended) => ended,
        Err(error) => unread(&error, &context, "the group's jobs could not be read"),
    }
}

fn submit(context: &Context, input: GroupInput) -> Ended {
    let now = context.clock.now();
    let wait = Wait::children(until(input.on_failure)).until(now + Duration::from_millis(context.job.timeout_ms));
    let children = input.jobs.into_iter().enumerate().map(|(place, job)| NewJob {
        id: JobId::child_of(context.job.id, now, place),
        ..child(context, job)
    });
    Ended::waits(wait, children.collect())
}

fn child(context: &Context, job: GroupJob) -> NewJob {
    let GroupJob {
        mut spec,
        class,
        agent,
        input,
    } = job;
    let parent = &context.job;
    spec.user_id = spec.user_id.or_else(|| parent.user_id.clone());
    NewJob {
        id: JobId::new(),
        tenant_id: parent.tenant_id,
        spec,
        class,
        input: input.get().as_bytes().to_vec(),
        created_at: context.clock.now(),
        api_key_id: parent.api_key_id,
        links: Links {
            agent,
            parent_id: Some(parent.id),
            ..Links::default()
        },
    }
}

async fn look(context: &Context, on_failure: OnFailure) -> Result<Ended, store::Error> {
    let job = &context.job;
    let members = context
        .machine
        .store
        .children(job.tenant_id, job.id, RESULTS_MAX)
        .await?;
    let states: Vec<StateName> = members.iter().map(|member| member.state).collect();
    match next(on_failure, &states, is_late(context, &members)) {
        Next::Wait => Ok(Ended::waits(
            Wait::children(until(on_failure)).until(deadline(context, &members)),
            Vec::new(),
        )),
        Next::CancelRest => {
            cancel_rest(context).await?;
            Ok(Ended::waits(Wait::children(Until::AllEnded), Vec::new()))
        }
        Next::End(failure) => Ok(end(members, failure)),
    }
}

fn until(on_failure: OnFailure) -> Until {
    match on_failure {
        OnFailure::Continue => Until::AllEnded,
        OnFailure::Cancel => Until::FirstFailure,
    }
}

/// A group waits so long after it submitted its jobs, however often it is woken.
fn deadline(context: &Context, members: &[Member]) -> DateTime<Utc> {
    let submitted_at = members
        .first()
        .map_or(context.job.created_at, |member| member.created_at);
    submitted_at + Duration::from_millis(context.job.timeout_ms)
}

fn is_late(context: &Context, members: &[Member]) -> bool {
    context.job.woken_by == Some(Woken::Deadline) || context.clock.now() >= deadline(context, members)
}

async fn cancel_rest(context: &Context) -> Result<(), store::Error> {
    let filter = Filter {
        parent_id: Some(context.job.id),
        ..Filter::default()
    };
    let (tenant_id, clock) = (context.job.tenant_id, &context.clock);
    let canceller = &context.machine.canceller;
    while canceller.matching(tenant_id, &filter, &OPEN, clock, None).await?.more {}
    Ok(())
}

fn end(jobs: Vec<Member>, failure: Option<Failure>) -> Ended {
    let count = |wanted: StateName| jobs.iter().filter(|member| member.state == wanted).count();
    let result = GroupResult {
        succeeded: count(StateName::Succeeded),
        failed: count(StateName::Failed),
        cancelled: count(StateName::Cancelled),
        jobs,
    };
    let ended = match failure {
        None => Ended::succeeded(Vec::new()),
        Some(failure) => Ended::failed(failure),
    };
    Ended {
        result: Some(serde_json::to_vec(&result).expect("a result has only string keys")),
        ..ended
    }
}
