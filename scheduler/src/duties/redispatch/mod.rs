//! Redispatch: makes Redis know what is queued in Postgres, and rebuilds it when it is new.
//!
//! A tick is every second, and more often while a backlog that was full is drained.
//!
//! | what | how often |
//! |---|---|
//! | a shard without a generation: begin one with leases for what runs, wait until those have passed or their workers have registered, dispatch, open | every tick |
//! | backlogs that were full and have room, lines at gates of which half is gone: page in by priority and age; lanes of tenants that had as many as they may | every tick |
//! | jobs that were asked to stop, by somebody who died before it said so: say it | every tick |
//! | rows since the last look, new and queued again, that Redis does not know: whoever wrote them died, or could not reach Redis | every second |
//! | all queued rows but those that are left in Postgres, page by page for a fiftieth of a second; paused queues, weights and limits | every ten seconds |
//! | all of these rows, tick after tick | once, by a new leader and after looks that failed for long |

mod backlog;
mod generation;
mod lanes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use common::ids::{JobId, TenantId};
use common::queue::{Dispatch, Dispatched, Queue, Spilled};
use common::service::{Duty, Report};
use common::store::Store;
use common::store::backlog::{Place, Queued};
use uuid::Uuid;

use super::pause::Pause;
use super::stop::stop;

/// Rows of one page.
const PAGE: u32 = 2_000;

/// A row younger than this is on its way to Redis in the process that inserted it.
const UNDER_WAY: TimeDelta = TimeDelta::seconds(1);

/// Whoever asks a job to stop says so itself within this time.
const CANCELS_UNDER_WAY: TimeDelta = TimeDelta::seconds(2);

/// How far back a look at recent rows goes. When the last one is longer ago than that, one at all rows is due.
const RECENT: TimeDelta = TimeDelta::seconds(10);

/// How much later than [`UNDER_WAY`] after its id's time a row may be committed and still be seen by the next look: by a slow
/// Postgres, or a process whose clock is behind. One that comes later still is found by the look at all rows.
const LATE: TimeDelta = TimeDelta::milliseconds(500);

/// Rows of a page of recent ones, of which most may be no news: the list of what is left in Postgres goes with each page.
const RECENT_PAGE: u32 = 10_000;

/// Most pages of one look; the next one goes on there. More rows than are inserted meanwhile.
const RECENT_PAGES: u32 = 16;

/// Time between two looks at recent rows, however often there is something to page in.
const RECENT_EVERY: TimeDelta = TimeDelta::milliseconds(900);

/// Time between two ticks while no backlog was ever full.
const IDLE: Duration = Duration::from_secs(1);

/// The same beside a backlog of which nothing is taken: when that begins, half of it must not be gone before the next tick.
const FULL: Duration = Duration::from_millis(250);

/// The same beside one that is drained. Workers take ten thousand jobs in less than a second, and then stand still.
const DRAINING: Duration = Duration::from_millis(50);

/// Looks at recent rows between two parts of the look at all of them.
const SLOW: u64 = 10;

/// Time for one such part.
const SWEEP: Duration = Duration::from_millis(20);

/// Jobs that are read and dispatched together: workers take the first of them while the next are read.
const AT_ONCE: usize = 1_000;

/// What became of jobs that were dispatched.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    added: u64,
    spilled: u64,
}

/// The duty.
#[derive(Debug)]
pub struct Redispatch {
    store: Store,
    queue: Queue,
    dispatched_max: u32,
    cursor: Mutex<Cursor>,
    pause: Pause,
}

#[derive(Clone, Debug, Default)]
struct Cursor {
    tick: u64,
    looked_at: Option<DateTime<Utc>>,
    /// Where the next look at recent rows begins; a look that failed is made again.
    recent: Option<JobId>,
    after: Option<Place>,
    /// When the last look succeeded.
    seen_at: Option<DateTime<Utc>>,
    /// Whether there may be rows that no look at recent ones finds any more: until the next look at all has ended.
    is_behind: bool,
    /// The backlogs that were full, as the last tick saw them.
    spilled: Vec<Spilled>,
    /// Of crowded tenants, the last queue and class that was brought in: the next come first, so that none waits for ever.
    lanes: BTreeMap<TenantId, (String, String)>,
}

impl Redispatch {
    /// A duty that has not looked yet. `dispatched_max` is the length of a full backlog.
    pub fn new(store: Store, queue: Queue, dispatched_max: u32) -> Self {
        Self {
            store,
            queue,
            dispatched_max,
            cursor: Mutex::default(),
            pause: Pause::new(IDLE),
        }
    }

    fn cursor(&self) -> std::sync::MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a look at the rows; none while the last one is fresh.
    fn next_look(&self, now: DateTime<Utc>) -> Option<u64> {
        let mut cursor = self.cursor();
        let is_fresh = |at: DateTime<Utc>| (TimeDelta::zero()..RECENT_EVERY).contains(&(now - at));
        if cursor.looked_at.is_some_and(is_fresh) {
            return None;
        }
        cursor.looked_at = Some(now);
        cursor.tick += 1;
        Some(cursor.tick)
    }

    /// Those of these jobs of a tenant that Redis does not know. It knows the first of what comes next, and looking at a row costs
    /// more than asking.
    async fn unknown(&self, tenant_id: TenantId, next: &[JobId]) -> anyhow::Result<Vec<JobId>> {
        let ids: Vec<_> = next.iter().map(|id| (tenant_id, *id)).collect();
        let unknown = self.queue.unknown(&ids).await?;
        Ok(unknown.into_iter().map(|index| next[index]).collect())
    }

    /// Dispatches those rows that Redis does not know and that nobody is bringing there.
    async fn dispatch_unknown(&self, queued: &[Queued], now: DateTime<Utc>) -> anyhow::Result<u64> {
        let ids: Vec<_> = queued.iter().map(|job| (job.tenant_id, job.id)).collect();
        let unknown = self.queue.unknown(&ids).await?.into_iter().map(|index| &queued[index]);
        self.dispatch_rows(unknown, now).await
    }

    /// The same of jobs whose rows were not read yet. Forgets the places of those that have ended.
    async fn dispatch_strays(&self, jobs: &[(TenantId, JobId)], now: DateTime<Utc>) -> anyhow::Result<u64> {
        let unknown = self.queue.unknown(jobs).await?;
        let unknown: BTreeSet<JobId> = unknown.into_iter().map(|index| jobs[index].1).collect();
        if unknown.is_empty() {
            return Ok(0);
        }
        let ids: Vec<JobId> = unknown.iter().copied().collect();
        let queued = self.store.queued_of(&ids).await?;
        let found: BTreeSet<JobId> = queued.iter().map(|job| job.id).collect();
        let gone: Vec<JobId> = unknown.difference(&found).copied().collect();
        Ok(self.store.forget_left(&gone).await? + self.dispatch_rows(&queued, now).await?)
    }

    /// Dispatches what has been queued for longer than a dispatch is under way.
    async fn dispatch_rows(
        &self,
        queued: impl IntoIterator<Item = &Queued>,
        now: DateTime<Utc>,
    ) -> anyhow::Result<u64> {
        let is_overdue = |job: &&Queued| now - job.queued_at >= UNDER_WAY;
        let missing: Vec<JobId> = queued.into_iter().filter(is_overdue).map(|job| job.id).collect();
        Ok(self.dispatch(&missing).await?.added)
    }

    /// Rows since the last look. It goes a little further back than that, for rows that were committed late.
    async fn dispatch_recent(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let until = floor(now - UNDER_WAY);
        let mut after = self.cursor().recent.unwrap_or_else(|| floor(now - RECENT));
        let mut changed = 0;
        let left = self.left().await?;
        let recent = self
            .store
            .recent(
                (after, until),
                now - RECENT,
                now - CANCELS_UNDER_WAY,
                (&left, RECENT_PAGE),
            )
            .await?;
        let mut rows = recent.rows;
        for page in 1..=RECENT_PAGES {
            changed += self.dispatch_unknown(&rows.queued, now).await?;
            let Some(last) = rows.last else {
                after = floor(now - UNDER_WAY - LATE);
                break;
            };
            after = last;
            if page < RECENT_PAGES {
                rows = self.store.rows_between((after, until), (&left, RECENT_PAGE)).await?;
            }
        }
        changed += self.dispatch_unknown(&recent.again, now).await?;
        self.cursor().recent = Some(after);
        changed += stop(self.name(), (&self.store, &self.queue), &recent.cancelling, now).await?;
        Ok(changed)
    }

    /// Dispatches those of these jobs that are queued. Those that were claimed or cancelled meanwhile are somebody's already.
    async fn dispatch(&self, ids: &[JobId]) -> anyhow::Result<Done> {
        self.offer(ids, false).await
    }

    async fn offer(&self, ids: &[JobId], are_next_in_line: bool) -> anyhow::Result<Done> {
        let mut done = Done::default();
        for ids in ids.chunks(AT_ONCE) {
            let briefs = self.store.briefs(ids).await?;
            let dispatches: Vec<Dispatch> = briefs.iter().map(Dispatch::from_brief).collect();
            let dispatched = if are_next_in_line {
                self.queue.dispatch_next_in_line(&dispatches).await?
            } else {
                self.queue.dispatch(&dispatches).await?
            };
            for dispatched in dispatched {
                match dispatched {
                    Dispatched::Added => done.added += 1,
                    Dispatched::Spilled => done.spilled += 1,
                    Dispatched::Known | Dispatched::InLine => {}
                }
            }
        }
        Ok(done)
    }

    /// Notes a look at recent rows that succeeded. After a gap that is longer than it goes back, all rows are looked at.
    fn note_look(&self, now: DateTime<Utc>) {
        let mut cursor = self.cursor();
        if cursor.seen_at.is_none_or(|at| now - at > RECENT) {
            (cursor.after, cursor.is_behind) = (None, true);
        }
        cursor.seen_at = Some(now);
    }

    /// Pages of all rows, from where the last call ended, for as long as [`SWEEP`].
    async fn sweep(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let (begun, left) = (Instant::now(), self.left().await?);
        let mut changed = 0;
        loop {
            let after = self.cursor().after.clone().unwrap_or_else(Place::first);
            let page = self.store.queued_after(&after, &left, PAGE).await?;
            changed += self.dispatch_strays(&page.jobs, now).await?;
            let is_last = page.next.is_none();
            let mut cursor = self.cursor();
            cursor.after = page.next;
            cursor.is_behind &= !is_last;
            if is_last || begun.elapsed() >= SWEEP {
                return Ok(changed);
            }
        }
    }
}

impl Duty for Redispatch {
    fn name(&self) -> &'static str {
        "redispatch"
    }

    fn interval(&self) -> Duration {
        self.pause.get()
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        self.pause.set(IDLE);
        let mut are_open = true;
        for shard in self.queue.shards() {
            are_open &= self.open(shard, now).await?;
        }
        if !are_open {
            return Ok(Report::default());
        }
        let paged = self.page_in().await?;
        let (look, mut changed) = (self.next_look(now), paged);
        if look.is_some() {
            changed += self.dispatch_recent(now).await?;
            self.note_look(now);
        }
        let is_slow = look.is_some_and(|tick| tick.is_multiple_of(SLOW));
        if is_slow || self.cursor().is_behind {
            changed += self.sweep(now).await?;
        }
        if is_slow {
            self.sync_settings(now).await?;
        }
        if self.cursor().is_behind {
            self.pause.set(DRAINING);
        }
        Ok(Report {
            changed,
            more: paged > 0,
        })
    }
}

/// The lowest job id of an instant.
fn floor(at: DateTime<Utc>) -> JobId {
    let ms = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    JobId(Uuid::from_u128(u128::from(ms) << 80))
}
