//! Why a job is not running.

use chrono::{DateTime, SecondsFormat, Utc};
use common::job::spec::SlotClass;
use common::job::{Job, JobState, WaitFor};
use common::queue::{Place, Shut, Why};
use common::store::sandboxes::HeldBack;
use common::store::workers::{SILENT_AFTER, Worker, WorkerStatus};

use crate::state::App;

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
        Some(WaitFor::Provider) => "its model's provider, which is to be left alone for a while".to_owned(),
        None => "something else must end first".to_owned(),
    }
}

async fn queued(app: &App, job: &Job) -> Option<String> {
    let paused = app.store().paused_queues().await.ok()?;
    if paused.contains(&job.queue) {
        return Some(format!("queue {} is paused", job.queue));
    }
    let workers = app.store().workers(app.clock().now(), SILENT_AFTER).await.ok()?;
    if let Some(reason) = unserved(job, &workers) {
        return Some(reason);
    }
    if let Some(conversation_id) = job.conversation_id {
        let open = app.store().open_turns(job.tenant_id, conversation_id).await.ok()?;
        if open.first().is_some_and(|first| *first < job.id) {
            return Some("an earlier turn of its conversation".to_owned());
        }
    }
    Some(match app.queue().why(job.tenant_id, job.id).await {
        Ok(Some(why)) => {
            if let Place::Backlog { ahead } = why.place
                && let Some(held_back) = held_back(app, job, &workers).await
            {
                return Some(format!("a free slot: {held_back}; position {} in the queue", ahead + 1));
            }
            sentence(job, &why)
        }
        Ok(None) => match app.queue().is_crowded_out(job.tenant_id, &job.queue, &job.class).await {
            Ok(true) => {
                "others of its tenant: they are in as many queues, or need as many sets of labels, as are worked \
                         off at once (leases.lanes_max)"
                    .to_owned()
            }
            _ => "a free slot; it is not in Redis yet".to_owned(),
        },
        Err(_away) => "Redis, which does not answer: nothing starts until it does".to_owned(),
    })
}

/// What keeps every worker that could serve a job from starting a sandbox for it; `None` when one is not kept.
async fn held_back(app: &App, job: &Job, workers: &[WorkerStatus]) -> Option<&'static str> {
    if slot(job) != SlotClass::Sandbox.as_str() {
        return None;
    }
    let said = app.store().sandboxes(app.clock().now() - SILENT_AFTER).await.ok()?;
    let of_worker = |worker: &WorkerStatus| said.iter().find(|said| said.worker_id == worker.worker.id);
    let able = workers.iter().filter(|worker| can_serve(worker, job));
    let found: Vec<Option<HeldBack>> = able.map(|worker| of_worker(worker)?.held_back()).collect();
    let all = |what| found.iter().all(|held_back| *held_back == Some(what));
    if found.is_empty() || found.contains(&None) {
        None
    } else if all(HeldBack::Disk) {
        Some("no live worker has room left on its disk to start a sandbox")
    } else if all(HeldBack::Engine) {
        Some("no live worker's engine answers to start a sandbox")
    } else {
        Some("of no live worker the engine answers and has room left on its disk to start a sandbox")
    }
}

/// Whether a worker claims jobs like this one.
fn can_serve(status: &WorkerStatus, job: &Job) -> bool {
    let worker = &status.worker;
    status.draining_at.is_none()
        && (worker.queues.is_empty() || worker.queues.contains(&job.queue))
        && worker.slots.get(slot(job)).is_some_and(|slots| *slots > 0)
        && job.labels.iter().all(|label| worker.labels.contains(label))
}

/// What its slot must be.
fn slot(job: &Job) -> &str {
    job.class.split('+').next().unwrap_or_default()
}

/// Why no live worker can serve a job; `None` when one can.
fn unserved(job: &Job, workers: &[WorkerStatus]) -> Option<String> {
    if workers.iter().any(|worker| can_serve(worker, job)) {
        return None;
    }
    let slot = slot(job);
    let live = || {
        workers
            .iter()
            .filter(|status| status.draining_at.is_none())
            .map(|status| &status.worker)
    };
    let of_queue = |worker: &&Worker| worker.queues.is_empty() || worker.queues.contains(&job.queue);
    let of_slot = |worker: &&Worker| worker.slots.get(slot).is_some_and(|slots| *slots > 0);
    if workers.is_empty() {
        Some("no worker is running".to_owned())
    } else if live().next().is_none() {
        Some("every worker is draining: none takes a job any more".to_owned())
    } else if !live().any(|worker| of_queue(&worker)) {
        Some(format!("no worker serves queue {}", job.queue))
    } else if !live().filter(of_queue).any(|worker| of_slot(&worker)) {
        Some(format!("no worker of queue {} has {slot} slots", job.queue))
    } else {
        let labels = job.labels.join(", ");
        Some(format!(
            "no worker of queue {} with {slot} slots has the labels {labels}",
            job.queue
        ))
    }
}

/// What the index says of a job.
fn sentence(job: &Job, why: &Why) -> String {
    match &why.place {
        Place::Leased => "a worker that has just claimed it".to_owned(),
        Place::Backlog { ahead } if why.is_alone => format!(
            "a worker that runs nothing else, for workers died under it; position {} of such jobs",
            ahead + 1
        ),
        Place::Backlog { ahead } => format!("a free slot; position {} in the queue", ahead + 1),
        Place::Shut {
            by,
            is_paused: true,
            until,
            ..
        } => {
            let what = match by {
                Shut::Tenant => "its tenant".to_owned(),
                Shut::Rate => format!("rate key {}", key(job, *by)),
                by => gate(job, *by),
            };
            let end = until
                .map(|until| format!(" until {}", clock(until)))
                .unwrap_or_default();
            format!("{what} is paused{end}")
        }
        Place::Shut {
            by,
            until: Some(until),
            ahead,
            ..
        } => format!("{} until {}; position {}", gate(job, *by), clock(*until), ahead + 1),
        Place::Shut { by, ahead, .. } => format!("{}; position {}", gate(job, *by), ahead + 1),
    }
}

fn clock(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The key of a job that a gate is of.
fn key(job: &Job, by: Shut) -> &str {
    let key = match by {
        Shut::Rate => job.rate.as_ref().map(|rate| &rate.key),
        _ => job.concurrency.as_ref().map(|key| &key.key),
    };
    key.map(String::as_str).unwrap_or_default()
}

fn gate(job: &Job, by: Shut) -> String {
    match by {
        Shut::Tenant => "the limit of its tenant".to_owned(),
        Shut::Queue => format!("the limit of queue {}", job.queue),
        Shut::Agent(_) => "the limit of its agent".to_owned(),
        Shut::Concurrency => format!("concurrency key {}", key(job, by)),
        Shut::Rate => format!("rate limit of key {}", key(job, by)),
        Shut::Conversation(_) => "an earlier turn of its conversation".to_owned(),
    }
}
