//! What became of the jobs of schedules: written beside their due times, where it is kept for ever, and counted.
//!
//! # Invariants
//! - An outcome is counted once: whoever notes it holds the schedule's row, and writes only where nothing stands yet.
//! - It never waits while it holds two schedules in another order than somebody else: rows are locked by their ids.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::row::int;
use super::{Error, Store};
use crate::ids::{JobId, ScheduleId};

/// Results that are longer are not kept for templates, bytes.
const RESULT_MAX: i32 = 64 * 1024;

/// A place in the rotation over all due times whose jobs have not ended.
pub type Place = (ScheduleId, JobId);

/// What was noted.
#[derive(Debug, Default)]
pub struct Noted {
    /// Jobs whose ends were written down.
    pub ended: u64,
    /// Due times that were looked at: their jobs had not ended, as far as was written.
    pub open: u64,
    /// Schedules that were paused because their jobs failed too often in a row.
    pub paused: Vec<ScheduleId>,
    /// Where to go on; `None` at the end.
    pub next: Option<Place>,
}

/// Which due times are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which<'a> {
    /// Those of schedules that the caller has locked.
    Of(&'a [ScheduleId]),
    /// So many after a place.
    After(Place, u32),
}

/// An end of a job.
#[derive(Debug)]
struct End {
    place: Place,
    state: String,
    error: Option<String>,
    ended_at: Option<DateTime<Utc>>,
}

impl Store {
    /// Notes what became of jobs, among the next `limit` due times after a place whose jobs had not ended.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn note_outcomes(&self, after: Place, limit: u32) -> Result<Noted, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let noted = note(&mut tx, Which::After(after, limit)).await?;
            tx.commit().await?;
            Ok(noted)
        })
        .await
    }
}

pub(super) async fn note(tx: &mut PgConnection, which: Which<'_>) -> Result<Noted, Error> {
    let (places, next) = open(tx, which).await?;
    let ends = ends(tx, &places).await?;
    let mut noted = Noted {
        open: u64::try_from(places.len()).unwrap_or(u64::MAX),
        next,
        ..Noted::default()
    };
    if ends.is_empty() {
        return Ok(noted);
    }
    let mut ids: Vec<ScheduleId> = ends.iter().map(|end| end.place.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let schedules = sqlx::query(
        "select id, failures_in_row, pause_after_failures, enabled from schedules where id = any($1) order by id
         for update",
    )
    .bind(&ids)
    .fetch_all(&mut *tx)
    .await?;
    let written = write(tx, &ends).await?;
    noted.ended = u64::try_from(written.len()).unwrap_or(u64::MAX);
    let mut by_schedule: BTreeMap<ScheduleId, Vec<&End>> = BTreeMap::new();
    for end in ends.iter().filter(|end| written.contains(&end.place)) {
        by_schedule.entry(end.place.0).or_default().push(end);
    }
    let mut counts = Vec::new();
    for row in &schedules {
        let id: ScheduleId = row.try_get("id")?;
        let Some(ends) = by_schedule.get_mut(&id) else { continue };
        ends.sort_by_key(|end| end.ended_at);
        let before = u32::try_from(row.try_get::<i32, _>("failures_in_row")?).unwrap_or(0);
        let count = Count::of(id, before, ends);
        let limit: Option<i32> = row.try_get("pause_after_failures")?;
        let is_too_often = limit.is_some_and(|limit| i64::from(count.failures) >= i64::from(limit));
        if row.try_get("enabled")? && is_too_often {
            noted.paused.push(id);
        }
        counts.push(count);
    }
    save(tx, &counts, &noted.paused).await?;
    Ok(noted)
}

/// Due times whose jobs had not ended, and where the next page begins.
async fn open(tx: &mut PgConnection, which: Which<'_>) -> Result<(Vec<Place>, Option<Place>), Error> {
    let rows = match which {
        Which::Of(ids) => {
            sqlx::query(
                "select schedule_id, job_id from fires
                 where schedule_id = any($1) and job_id is not null and job_state is null",
            )
            .bind(ids)
            .fetch_all(tx)
            .await?
        }
        Which::After((schedule_id, job_id), limit) => {
            sqlx::query(
                "select schedule_id, job_id from fires
                 where job_id is not null and job_state is null and (schedule_id, job_id) > ($1, $2)
                 order by schedule_id, job_id limit $3",
            )
            .bind(schedule_id)
            .bind(job_id)
            .bind(i64::from(limit))
            .fetch_all(tx)
            .await?
        }
    };
    let places: Vec<Place> = rows
        .iter()
        .map(|row| Ok((row.try_get("schedule_id")?, row.try_get("job_id")?)))
        .collect::<Result<_, sqlx::Error>>()?;
    let is_full =
        matches!(which, Which::After(_, limit) if places.len() == usize::try_from(limit).unwrap_or(usize::MAX));
    let next = places.last().copied().filter(|_| is_full);
    Ok((places, next))
}

/// Which of the jobs have ended. One that is not there any more was forgotten with its day.
async fn ends(tx: &mut PgConnection, places: &[Place]) -> Result<Vec<End>, Error> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("select id, state, error_code, finished_at from jobs where id = any($1)")
        .bind(places.iter().map(|(_, job_id)| *job_id).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
    let mut jobs = HashMap::with_capacity(rows.len());
    for row in &rows {
        let (state, error): (String, Option<String>) = (row.try_get("state")?, row.try_get("error_code")?);
        let ended_at: Option<DateTime<Utc>> = row.try_get("finished_at")?;
        jobs.insert(row.try_get::<JobId, _>("id")?, (state, error, ended_at));
    }
    let ended = places.iter().filter_map(|place| match jobs.remove(&place.1) {
        Some((_, _, None)) => None,
        Some((state, error, ended_at)) => Some(End {
            place: *place,
            error: error.filter(|_| state == "failed"),
            state,
            ended_at,
        }),
        None => Some(End {
            place: *place,
            state: "forgotten".to_owned(),
            error: None,
            ended_at: None,
        }),
    });
    Ok(ended.collect())
}

/// Writes ends where none stands yet, and answers which.
async fn write(tx: &mut PgConnection, ends: &[End]) -> Result<HashSet<Place>, Error> {
    let rows = sqlx::query(
        "update fires set job_state = e.state, job_error = e.error, job_ended_at = e.ended_at
         from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
            as e(schedule_id, job_id, state, error, ended_at)
         where fires.schedule_id = e.schedule_id and fires.job_id = e.job_id and fires.job_state is null
            and fires.job_id is not null
         returning fires.schedule_id, fires.job_id",
    )
    .bind(ends.iter().map(|end| end.place.0).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.place.1).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.state.as_str()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.error.as_deref()).collect::<Vec<_>>())
    .bind(ends.iter().map(|end| end.ended_at).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("schedule_id")?, row.try_get("job_id")?)))
        .collect()
}

/// What some ends mean for a schedule.
#[derive(Debug, PartialEq, Eq)]
struct Count {
    id: ScheduleId,
    failures: u32,
    error: Option<String>,
    succeeded: Option<JobId>,
}

impl Count {
    /// Counts ends, the earliest first. A cancelled job says nothing.
    fn of(id: ScheduleId, before: u32, ends: &[&End]) -> Self {
        let mut count = Self {
            id,
            failures: before,
            error: None,
            succeeded: None,
        };
        for end in ends {
            match end.state.as_str() {
                "succeeded" => (count.failures, count.succeeded) = (0, Some(end.place.1)),
                "failed" => {
                    count.failures = count.failures.saturating_add(1);
                    count.error.clone_from(&end.error);
                }
                _ => {}
            }
        }
        count
    }
}

/// Saves counts and results, and pauses.
async fn save(tx: &mut PgConnection, counts: &[Count], paused: &[ScheduleId]) -> Result<(), Error> {
    sqlx::query(
        "update schedules set failures_in_row = c.failures,
            last_result = case when keeps_result and c.succeeded is not null then
                (select case when length(jobs.result) > $6 then convert_to(format(
                    '{\"omitted\":\"the result has %s bytes, and %s are kept\"}', length(jobs.result), $6), 'UTF8')
                    else jobs.result end from jobs where id = c.succeeded and id = any($4)) else last_result end,
            enabled = enabled and not c.paused, version = version + c.paused::int,
            updated_at = case when c.paused then clock_timestamp() else updated_at end,
            paused_reason = case when c.paused then format('%s jobs in a row failed%s', c.failures,
                ', the last with ' || c.error) else paused_reason end
         from unnest($1::uuid[], $2::integer[], $3::boolean[], $4::uuid[], $5::text[])
            as c(id, failures, paused, succeeded, error)
         where schedules.id = c.id",
    )
    .bind(counts.iter().map(|count| count.id).collect::<Vec<_>>())
    .bind(counts.iter().map(|count| int(count.failures)).collect::<Vec<_>>())
    .bind(
        counts
            .iter()
            .map(|count| paused.contains(&count.id))
            .collect::<Vec<_>>(),
    )
    .bind(counts.iter().map(|count| count.succeeded).collect::<Vec<_>>())
    .bind(counts.iter().map(|count| count.error.as_deref()).collect::<Vec<_>>())
    .bind(RESULT_MAX)
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::on_top(2, &["failed"], 3)]
    #[case::a_success_starts_anew(2, &["failed", "succeeded", "failed"], 1)]
    #[case::cancelled_says_nothing(2, &["cancelled", "forgotten"], 2)]
    fn failures_in_a_row_are_counted(#[case] before: u32, #[case] states: &[&str], #[case] expected: u32) {
        let id = ScheduleId::new();
        let ends: Vec<End> = states
            .iter()
            .map(|state| End {
                place: (id, JobId::new()),
                state: (*state).to_owned(),
                error: None,
                ended_at: None,
            })
            .collect();
        assert_eq!(
            Count::of(id, before, &ends.iter().collect::<Vec<_>>()).failures,
            expected
        );
    }
}
