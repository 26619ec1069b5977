//! Fires that a person asked for: now, or for due times of the past.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::super::admit::{Decided, admit_inserted};
use super::super::insert::insert_jobs;
use super::super::schedules::{COLUMNS, schedule};
use super::super::{Error, Store};
use super::due::Read;
use super::write;
use crate::ids::{JobId, ScheduleId, TenantId};
use crate::job::NewJob;
use crate::schedule::decide::Decision;
use crate::schedule::job::new_job;
use crate::schedule::{Overlap, Schedule};

/// Most due times of one backfill.
pub const BACKFILL_MAX: usize = 10_000;

/// What became of a fire that a person asked for.
#[derive(Debug)]
pub enum Manual {
    /// A job was made: dispatch it, and stop those that give way to it.
    Fired(Box<NewJob>, Vec<(TenantId, JobId)>),
    /// It cannot be fired.
    Refused(String),
    /// The tenant has no such schedule.
    NotFound,
}

/// What became of a backfill.
#[derive(Debug)]
pub enum Backfilled {
    /// Jobs were made for those due times that had none: dispatch them, and stop those that give way to them.
    Fired(Vec<NewJob>, Vec<(TenantId, JobId)>),
    /// It cannot be fired.
    Refused(String),
    /// The tenant has no such schedule.
    NotFound,
}

impl Store {
    /// Fires a schedule now because a person asked for it, whether or not it is enabled or its last job has ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn fire_now(&self, tenant_id: TenantId, id: ScheduleId) -> Result<Manual, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let Some((found, now)) = self.locked(&mut tx, tenant_id, id).await? else {
                return Ok(Manual::NotFound);
            };
            let read = Read::of(&mut tx, found.clone()).await?;
            let job = match new_job(&found, &read.means(&found), now, found.last_fire_at, now) {
                Ok(job) => job,
                Err(reason) => return Ok(Manual::Refused(reason)),
            };
            let (jobs, decided) = commit(&mut tx, now, Decision::manual(&found, job, now)).await?;
            if !decided.rejected.is_empty() {
                // Not committed: somebody waits for this answer.
                let reason = "as many jobs of its concurrency key are open as its limit allows";
                return Ok(Manual::Refused(reason.to_owned()));
            }
            tx.commit().await?;
            Ok(jobs.into_iter().next().map_or_else(
                || Manual::Refused("it was fired at the same moment".to_owned()),
                |job| Manual::Fired(Box::new(job), decided.superseded),
            ))
        })
        .await
    }

    /// Makes jobs for due times of the past, oldest first, except for those that have one: what was skipped or missed is
    /// made up for. With [`Overlap::QueueAll`] they run one after another, with [`Overlap::Allow`] side by side.
    ///
    /// # Errors
    /// When Postgres is away; then nothing was made.
    pub async fn backfill(
        &self,
        tenant_id: TenantId,
        id: ScheduleId,
        times: &[DateTime<Utc>],
        overlap: Overlap,
    ) -> Result<Backfilled, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let Some((mut found, now)) = self.locked(&mut tx, tenant_id, id).await? else {
                return Ok(Backfilled::NotFound);
            };
            found.overlap = overlap;
            let read = Read::of(&mut tx, found.clone()).await?;
            let means = read.means(&found);
            let (mut fires, mut before) = (Vec::with_capacity(times.len()), None);
            for fire_at in times {
                match new_job(&found, &means, *fire_at, before, now) {
                    Ok(job) => fires.push((*fire_at, job)),
                    Err(reason) => return Ok(Backfilled::Refused(reason)),
                }
                before = Some(*fire_at);
            }
            let (jobs, decided) = commit(&mut tx, now, Decision::backfill(&found, fires)).await?;
            tx.commit().await?;
            Ok(Backfilled::Fired(jobs, decided.superseded))
        })
        .await
    }

    /// Locks a tenant's schedule and tells the time.
    async fn locked(
        &self,
        tx: &mut PgConnection,
        tenant_id: TenantId,
        id: ScheduleId,
    ) -> Result<Option<(Schedule, DateTime<Utc>)>, Error> {
        let sql = format!(
            "select {COLUMNS}, clock_timestamp() + $3 * interval '1 microsecond' as now from schedules
             where id = $1 and tenant_id = $2 and deleted_at is null for update"
        );
        let row = sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(tenant_id)
            .bind(self.clock_offset_us())
            .fetch_optional(tx)
            .await?;
        row.map(|row| Ok((schedule(&row)?, row.try_get("now")?))).transpose()
    }
}

/// Writes a decision down; answers the jobs that it made and that may run, and what their strategies decided.
async fn commit(
    tx: &mut PgConnection,
    now: DateTime<Utc>,
    decision: Decision,
) -> Result<(Vec<NewJob>, Decided), Error> {
    let mut decisions = [decision];
    write::place_turns(tx, &mut decisions).await?;
    let made = write::record(tx, 0, now, &decisions).await?;
    let mut jobs: Vec<NewJob> = write::jobs(&decisions, &made).cloned().collect();
    write::add_messages(tx, &decisions, &made).await?;
    insert_jobs(tx, &jobs.iter().collect::<Vec<_>>()).await?;
    let decided = admit_inserted(tx, &jobs.iter().collect::<Vec<_>>(), now).await?;
    write::advance(tx, &decisions, &made).await?;
    jobs.retain(|job| !decided.rejected.contains(&job.id));
    Ok((jobs, decided))
}
