//! Reading a job's event log: the one function that every reader uses.
//!
//! The live tail is in Redis, the written part in Postgres, and what a job that printed nothing did is in its row alone.
//! The order of the three reads is what makes the result whole:
//!
//! 1. Redis. What it has trimmed is in Postgres by then.
//! 2. The row. When it says that the job has ended, every event before the end was committed with it, and what Redis still
//!    has counts no more: it may be of a conversation that is forgotten.
//! 3. The chunks. They hold everything that neither of the others has.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::ids::{JobId, TenantId};
use crate::job::event::{Event, EventBody};
use crate::job::{Failure, FailureCode, Job, JobState};
use crate::queue::{Queue, READ_MAX};
use crate::store::jobs::JobDetail;
use crate::store::{self, Store};

/// A reader of event logs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    store: Store,
    queue: Queue,
}

/// Some events of a job.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In order, each once.
    pub events: Vec<Event>,
    /// Whether there may be more at once.
    pub more: bool,
    /// Whether the job has ended and `events` reaches, or the cursor was at, the end.
    pub ended: bool,
}

impl Log {
    /// A reader over both stores.
    pub fn new(store: Store, queue: Queue) -> Self {
        Self { store, queue }
    }

    /// Up to about `limit` events of a tenant's job after number `after`; `None` when the tenant has no such job.
    /// While Redis is away the page ends at what is written.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn read(
        &self,
        tenant_id: TenantId,
        job_id: JobId,
        after: u64,
        limit: usize,
    ) -> Result<Option<Page>, store::Error> {
        let tail = self.tail(tenant_id, job_id, after, limit).await;
        let Some(detail) = self.store.job(tenant_id, job_id).await? else {
            return Ok(None);
        };
        let tail = if detail.job.state.is_terminal() {
            Vec::new()
        } else {
            tail
        };
        let (written, more) = self.store.events(job_id, after, limit).await?;
        Ok(Some(assemble(&detail, after, written, more, tail, limit)))
    }

    /// The events that follow number `after` without a hole in the live tail, when there are any. A reader that has
    /// everything up to `after` misses nothing by them; without them it takes [`Self::read`].
    pub async fn continued(&self, tenant_id: TenantId, job_id: JobId, after: u64) -> Option<Page> {
        let mut events = self.queue.tail(tenant_id, job_id, after).await.ok()?;
        let follows = |(place, event): (u64, &Event)| event.seq == after + 1 + place;
        let whole = (0..).zip(&events).take_while(|pair| follows(*pair)).count();
        events.truncate(whole);
        (!events.is_empty()).then_some(Page {
            events,
            more: false,
            ended: false,
        })
    }

    /// The live part, until there is no more or a page is full; nothing while Redis is away.
    async fn tail(&self, tenant_id: TenantId, job_id: JobId, after: u64, limit: usize) -> Vec<Event> {
        let mut tail: Vec<Event> = Vec::new();
        loop {
            let from = tail.last().map_or(after, |event| event.seq);
            match self.queue.tail(tenant_id, job_id, from).await {
                Ok(more) => {
                    let is_last = more.len() < READ_MAX;
                    tail.extend(more);
                    if is_last || tail.len() > limit {
                        return tail;
                    }
                }
                Err(error) => {
                    tracing::debug!(%job_id, %error, "the live tail cannot be read");
                    return tail;
                }
            }
        }
    }
}

/// Puts the three sources together. `written_more` says that Postgres has events beyond `written`.
fn assemble(
    detail: &JobDetail,
    after: u64,
    written: Vec<Event>,
    written_more: bool,
    tail: Vec<Event>,
    limit: usize,
) -> Page {
    let job = &detail.job;
    let bound = if written_more {
        written.last().map_or(after, |event| event.seq)
    } else {
        u64::MAX
    };
    let mut events: BTreeMap<u64, Event> = BTreeMap::new();
    let known = written.into_iter().chain(tail);
    for event in known.filter(|event| event.seq > after && event.seq <= bound) {
        events.insert(event.seq, event);
    }
    for event in implied(detail)
        .into_iter()
        .filter(|event| event.seq > after && event.seq <= bound)
    {
        events.entry(event.seq).or_insert(event);
    }
    let end = job.state.is_terminal().then_some(job.seq);
    let mut events: Vec<Event> = events
        .into_values()
        .filter(|event| end.is_none_or(|end| event.seq <= end))
        .collect();
    let cut = events.len() > limit;
    events.truncate(limit);
    let last = events.last().map_or(after, |event| event.seq);
    Page {
        events,
        more: cut || written_more,
        ended: end.is_some_and(|end| last >= end),
    }
}

/// The events that the row itself tells: the first, the current start where nothing else wrote it, and the end.
fn implied(detail: &JobDetail) -> Vec<Event> {
    let job = &detail.job;
    let event = |seq: u64, at: DateTime<Utc>, attempt: u32, body: EventBody| Event { seq, at, attempt, body };
    let mut events = vec![event(1, job.created_at, 0, first(job))];
    let started = job
        .started_at
        .zip(job.worker_id)
        .map(|(at, worker)| (at, EventBody::Started { worker }));
    match job.state {
        JobState::Running { attempt, .. } => {
            events.extend(started.map(|(at, body)| event(job.seq, at, attempt, body)));
        }
        // An attempt that wrote something wrote its start too, and then this one is not used.
        _ if job.state.is_terminal() && job.attempt > 0 && job.seq > 2 => {
            events.extend(started.map(|(at, body)| event(job.seq - 1, at, job.attempt, body)));
        }
        _ => {}
    }
    let end = job.finished_at.map(|at| event(job.seq, at, job.attempt, last(detail)));
    events.extend(end.filter(|_| job.state.is_terminal()));
    events
}

fn first(job: &Job) -> EventBody {
    match job.run_at {
        Some(run_at) if run_at > job.created_at => EventBody::Status {
            phase: "scheduled".to_owned(),
            detail: Some(run_at.to_rfc3339()),
        },
        _ => EventBody::Queued { position: None },
    }
}

fn last(detail: &JobDetail) -> EventBody {
    let result = detail
        .result
        .as_deref()
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or(Value::Null);
    match detail.job.state {
        JobState::Failed { .. } => EventBody::Failed {
            error: detail
                .job
                .error
                .clone()
                .unwrap_or_else(|| Failure::new(FailureCode::Internal, "unknown")),
            result,
        },
        JobState::Cancelled { .. } => EventBody::Cancelled {},
        _ => EventBody::Succeeded { result },
    }
}
