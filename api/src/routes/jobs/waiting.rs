//! Why a job is not running.

use std::time::Duration;

use common::job::{Job, JobState, WaitFor};

use crate::state::App;

/// A worker that was not heard of for so long does not count.
const WORKER_SILENCE: Duration = Duration::from_secs(30);

/// A sentence for a job that waits; `None` when it does not, or when nobody can say.
pub(super) async fn reason(app: &App, job: &Job) -> Option<String> {
    match job.state {
        JobState::Queued { .. } => queued(app, job).await,
        JobState::Scheduled { due_at } => Some(format!("scheduled for {}", due_at.to_rfc3339())),
        JobState::Retrying { due_at } => Some(format!("retries at {}", due_at.to_rfc3339())),
        JobState::Waiting { .. } => Some(waiting(app, job).await),
        _ => None,
    }
}

async fn waiting(app: &App, job: &Job) -> String {
    match job.waits_for {
        Some(WaitFor::Children { .. }) => match app.store().count_children(job.id).await {
            Ok((all, open)) => format!("{open} of its {all} jobs"),
            Err(_away) => "its jobs".to_owned(),
        },
        Some(WaitFor::Answer) => "an answer".to_owned(),
        None => "something else must end first".to_owned(),
    }
}

async fn queued(app: &App, job: &Job) -> Option<String> {
    let paused = app.store().paused_queues().await.ok()?;
    if paused.contains(&job.queue) {
        return Some(format!("queue {} is paused", job.queue));
    }
    let workers = app.store().live_workers(app.clock().now(), WORKER_SILENCE).await.ok()?;
    let slot = job.class.split('+').next().unwrap_or_default();
    let serves = workers.iter().any(|status| {
        let worker = &status.worker;
        status.draining_at.is_none()
            && (worker.queues.is_empty() || worker.queues.contains(&job.queue))
            && worker.slots.get(slot).is_some_and(|slots| *slots > 0)
            && job.labels.iter().all(|label| worker.labels.contains(label))
    });
    if !serves {
        return Some(format!("no worker serves queue {} with {}", job.queue, job.class));
    }
    if let Some(conversation_id) = job.conversation_id {
        let open = app.store().open_turns(job.tenant_id, conversation_id).await.ok()?;
        if open.first().is_some_and(|first| *first < job.id) {
            return Some("an earlier turn of its conversation".to_owned());
        }
    }
    // In the backlog it has a place; after that it is either ready, or parked until its key has room.
    let ahead = app
        .queue()
        .position(job.tenant_id, &job.queue, &job.class, job.id)
        .await
        .ok()
        .flatten();
    Some(match (ahead, &job.concurrency) {
        (Some(ahead), _) => format!("a free slot; position {} in the queue", ahead + 1),
        (None, Some(concurrency)) => format!("a free slot, or a place of concurrency key {}", concurrency.key),
        (None, None) => "a free slot".to_owned(),
    })
}
