//! Fire: schedules that are due make jobs.
//!
//! The transaction in Postgres is everything: `common::store::fire` says what it holds. What follows may be lost, and is
//! found by others: a job that is not dispatched is found by redispatch, and a schedule that waits for a job to be
//! cancelled is due until it is. When more is due than fits into one transaction, several run at once: each takes
//! schedules that no other has.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::{JobId, TenantId};
use common::queue::{Dispatch, Queue};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::fire::Limits;
use common::store::leaders::Leadership;
use common::turn;
use tokio::sync::Notify;

use super::Deps;
use super::apart::apart;
use super::pause::Pause;
use super::wakes::Wakes;

/// Never asks more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Rounds that one of several lanes does in a tick.
const ROUNDS_MAX: u32 = 8;

pub(super) struct Fire {
    store: Store,
    queue: Queue,
    leadership: Leadership,
    limits: Limits,
    poll: Duration,
    /// How long until something is due, as far as the last tick knew.
    pause: Pause,
    woken: Arc<Notify>,
    fired: Arc<Notify>,
}

impl Fire {
    pub(super) fn new(deps: &Deps, leadership: &Leadership, wakes: &Wakes) -> Self {
        let settings = &deps.config.scheduler;
        Self {
            store: deps.store.clone(),
            queue: deps.queue.clone(),
            leadership: leadership.clone(),
            limits: Limits {
                schedules_max: settings.fire_batch,
                grace: settings.grace,
            },
            poll: settings.fire_poll,
            pause: Pause::new(settings.fire_poll),
            woken: Arc::clone(&wakes.schedules),
            fired: Arc::clone(&wakes.fired),
        }
    }

    async fn cancel(&self, jobs: &[(TenantId, JobId)], now: DateTime<Utc>) -> anyhow::Result<()> {
        for (tenant_id, job_id) in jobs {
            let cancelled = self.store.cancel(*tenant_id, *job_id, now).await;
            let Some(Some(job)) = apart(self.name(), job_id, cancelled.map_err(Into::into))? else {
                continue;
            };
            if let Err(error) = self
                .queue
                .cancel(*tenant_id, *job_id, job.seq, job.state.is_terminal())
                .await
            {
                tracing::warn!(%error, %job_id, "the worker hears of a cancelled job later");
            }
        }
        let ids: Vec<JobId> = jobs.iter().map(|(_, id)| *id).collect();
        turn::dispatch_next(&self.store, &self.queue, &ids).await;
        Ok(())
    }
}

impl Duty for Fire {
    fn name(&self) -> &'static str {
        "fire"
    }

    fn interval(&self) -> Duration {
        self.pause.get().clamp(PAUSE_MIN, self.poll)
    }

    async fn woken(&self) {
        self.woken.notified().await;
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let first = self.round(now).await?;
        let mut changed = first.changed;
        if first.more {
            let (one, two, three) = tokio::join!(self.lane(now), self.lane(now), self.lane(now));
            changed += one? + two? + three?;
        }
        Ok(Report {
            changed,
            more: changed > 0,
        })
    }
}

impl Fire {
    /// Rounds, as long as they are full.
    async fn lane(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let mut changed = 0;
        for _ in 0..ROUNDS_MAX {
            let round = self.round(now).await?;
            changed += round.changed;
            if !round.more {
                break;
            }
        }
        Ok(changed)
    }

    /// One transaction, and what follows. `more` says that it was full.
    async fn round(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let fired = self.store.fire_due(&self.leadership, self.limits).await?;
        self.pause.set(fired.next_in.unwrap_or(self.poll).min(self.poll));
        if !fired.jobs.is_empty() {
            self.fired.notify_one();
            let dispatches: Vec<Dispatch> = fired.jobs.iter().map(Dispatch::from_new).collect();
            if let Err(error) = self.queue.dispatch(&dispatches).await {
                tracing::warn!(%error, jobs = fired.jobs.len(), "fired jobs wait for redispatch");
            }
        }
        self.cancel(&fired.to_cancel, now).await?;
        ::metrics::counter!("hothouse_schedule_fires_total").increment(u64::try_from(fired.jobs.len()).unwrap_or(0));
        Ok(Report {
            changed: fired.schedules + fired.paused,
            more: fired.schedules >= u64::from(self.limits.schedules_max),
        })
    }
}
