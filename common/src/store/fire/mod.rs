//! Firing: one transaction checks the leader, records each due time, inserts its job and moves the schedule on.
//!
//! | file | does |
//! |---|---|
//! | [`due`] | locks what is due and reads what its jobs are made of |
//! | [`mod@write`] | records, inserts, moves on |
//! | [`by_hand`] | fires and backfills that a person asked for |
//!
//! # Invariants
//! - A due time is decided once: `fires` has the primary key (schedule, due time), and a job is inserted only where its
//!   row was.
//! - Only the leader fires: its epoch is checked in the transaction, and nobody takes over before it ends.
//! - Now is Postgres's clock, so a scheduler whose own clock jumps fires nothing too early or twice.
//! - A round waits for no lock on a schedule or a conversation: what somebody else holds is left for the next round.

mod by_hand;
mod due;
mod write;

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;

use self::due::Read;
use super::admit::admit_inserted;
use super::insert::insert_jobs;
use super::leaders::{Leadership, confirm};
use super::{Class, Error, Store};
use crate::ids::{JobId, ScheduleId, TenantId};
use crate::job::NewJob;
use crate::schedule::decide::{Context, Decision, decide};

pub use by_hand::{BACKFILL_MAX, Backfilled, Manual};

/// How schedules are fired.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most schedules in one transaction.
    pub schedules_max: u32,
    /// Due times that are not older than this are always fired.
    pub grace: Duration,
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Fired {
    /// Jobs to dispatch: they are committed.
    pub jobs: Vec<NewJob>,
    /// Jobs to cancel: those that give way to fired ones, and those that schedules wait for, which are fired in the next
    /// round.
    pub to_cancel: Vec<(TenantId, JobId)>,
    /// Schedules that were moved on.
    pub schedules: u64,
    /// Schedules that were paused: they cannot be fired, or their jobs failed too often.
    pub paused: u64,
    /// How long until the next schedule is due; `None` when none ever is.
    pub next_in: Option<Duration>,
}

impl Store {
    /// Fires what is due, as much as fits into one transaction. Several calls may run at once: each takes schedules that
    /// no other has. A schedule that Postgres refuses is paused and never holds up the others.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when another leads; otherwise when Postgres is away.
    pub async fn fire_due(&self, leadership: &Leadership, limits: Limits) -> Result<Fired, Error> {
        self.within(async {
            let (now, next) = self.next_due().await?;
            let wait = next.map(|next| (next - now).to_std().unwrap_or(Duration::ZERO));
            if wait.is_none_or(|wait| !wait.is_zero()) {
                return Ok(Fired {
                    next_in: wait,
                    ..Fired::default()
                });
            }
            self.fire_halving(leadership, limits, now).await
        })
        .await
    }

    /// Halves the round until the schedule that Postgres refuses stands alone, and pauses it.
    async fn fire_halving(&self, leadership: &Leadership, limits: Limits, now: DateTime<Utc>) -> Result<Fired, Error> {
        let mut schedules_max = limits.schedules_max;
        loop {
            let mut seen = Vec::new();
            let round = Limits {
                schedules_max,
                ..limits
            };
            match self.fire_round(leadership, round, now, &mut seen).await {
                Err(error) if error.class() == Class::Data && seen.len() > 1 => {
                    schedules_max = schedules_max
                        .min(u32::try_from(seen.len()).unwrap_or(u32::MAX))
                        .div_ceil(2);
                }
                Err(error) if error.class() == Class::Data && seen.len() == 1 => {
                    let reason = format!("its job is refused: {error}");
                    let paused = self.pause_unfit(leadership, &[(seen[0], reason)]).await?;
                    return Ok(Fired {
                        paused,
                        next_in: Some(Duration::ZERO),
                        ..Fired::default()
                    });
                }
                ended => return ended,
            }
        }
    }

    async fn next_due(&self) -> Result<(DateTime<Utc>, Option<DateTime<Utc>>), Error> {
        let row = sqlx::query(
            "select clock_timestamp() + $1 * interval '1 microsecond' as now,
                (select due_at from schedules where enabled and deleted_at is null and due_at is not null
                 order by due_at limit 1) as next",
        )
        .bind(self.clock_offset_us())
        .fetch_one(self.pool())
        .await?;
        Ok((row.try_get("now")?, row.try_get("next")?))
    }

    async fn fire_round(
        &self,
        leadership: &Leadership,
        limits: Limits,
        now: DateTime<Utc>,
        seen: &mut Vec<ScheduleId>,
    ) -> Result<Fired, Error> {
        let mut tx = self.pool().begin().await?;
        confirm(&mut tx, leadership, self.clock_offset_us()).await?;
        let read = Read::due(&mut tx, now, limits.schedules_max, seen).await?;
        let mut decisions: Vec<Decision> = Vec::with_capacity(read.schedules.len());
        for schedule in &read.schedules {
            let context = Context {
                now,
                grace: limits.grace,
                last: read.last(schedule),
                open: read.open(schedule),
                means: read.means(schedule),
            };
            decisions.push(decide(schedule, &context));
        }
        write::place_turns(&mut tx, &mut decisions).await?;
        let made = write::record(&mut tx, leadership.epoch, now, &decisions).await?;
        let mut jobs: Vec<NewJob> = write::jobs(&decisions, &made).cloned().collect();
        write::add_messages(&mut tx, &decisions, &made).await?;
        insert_jobs(&mut tx, &jobs.iter().collect::<Vec<_>>()).await?;
        let decided = admit_inserted(&mut tx, &jobs.iter().collect::<Vec<_>>(), now).await?;
        write::advance(&mut tx, &decisions, &made).await?;
        tx.commit().await?;
        jobs.retain(|job| !decided.rejected.contains(&job.id));
        let mut paused = read.paused;
        if !read.unfit.is_empty() {
            paused += self.pause_unfit(leadership, &read.unfit).await?;
        }
        Ok(Fired {
            jobs,
            to_cancel: decisions
                .iter()
                .filter_map(|decision| decision.cancel_first)
                .chain(decided.superseded)
                .collect(),
            schedules: u64::try_from(decisions.len()).unwrap_or(u64::MAX),
            paused,
            next_in: Some(Duration::ZERO),
        })
    }

    async fn pause_unfit(&self, leadership: &Leadership, unfit: &[(ScheduleId, String)]) -> Result<u64, Error> {
        let mut tx = self.pool().begin().await?;
        confirm(&mut tx, leadership, self.clock_offset_us()).await?;
        let done = sqlx::query(
            "update schedules set enabled = false, paused_reason = u.reason, version = version + 1,
                updated_at = clock_timestamp()
             from unnest($1::uuid[], $2::text[]) as u(id, reason) where schedules.id = u.id",
        )
        .bind(unfit.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .bind(unfit.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

/// The jobs whose due times nobody had decided before.
type Made = HashSet<JobId>;
