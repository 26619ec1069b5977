//! Writing down what was decided.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::super::Error;
use super::super::row::bigint;
use super::super::turns::{add_message, after_open_turns, id_after};
use super::Made;
use crate::ids::{ConversationId, JobId};
use crate::job::NewJob;
use crate::schedule::decide::Decision;

/// Gives the jobs of turns their ids, in the order of their conversations.
pub(super) async fn place_turns(tx: &mut PgConnection, decisions: &mut [Decision]) -> Result<(), Error> {
    let mut last: HashMap<ConversationId, (JobId, DateTime<Utc>)> = HashMap::new();
    let fires = decisions.iter_mut().flat_map(|decision| &mut decision.fires);
    for job in fires.filter_map(|fire| fire.job.as_mut()).map(|fired| &mut fired.job) {
        let Some(id) = job.links.conversation_id else { continue };
        let place = match last.get(&id) {
            Some((before, at)) => (id_after(Some(before.uuid())), job.created_at.max(*at)),
            None => after_open_turns(tx, id, job.created_at).await?,
        };
        (job.id, job.created_at) = place;
        last.insert(id, place);
    }
    Ok(())
}

/// Writes down what was decided; answers the jobs of those due times that nobody had decided before. A backfill may
/// decide again what was skipped or missed.
pub(super) async fn record(
    tx: &mut PgConnection,
    epoch: u64,
    now: DateTime<Utc>,
    decisions: &[Decision],
) -> Result<Made, Error> {
    let fires: Vec<_> = decisions
        .iter()
        .flat_map(|one| one.fires.iter().map(move |fire| (one.schedule_id, fire)))
        .collect();
    if fires.is_empty() {
        return Ok(Made::new());
    }
    let rows = sqlx::query(
        "insert into fires (schedule_id, fire_at, fired_at, epoch, job_id, outcome, reason, manual, backfill)
         select schedule_id, fire_at, $1, $2, job_id, outcome, reason, manual, backfill
         from unnest($3::uuid[], $4::timestamptz[], $5::uuid[], $6::text[], $7::text[], $8::boolean[], $9::boolean[])
            as t(schedule_id, fire_at, job_id, outcome, reason, manual, backfill)
         on conflict (schedule_id, fire_at) do update set fired_at = excluded.fired_at, epoch = excluded.epoch,
            job_id = excluded.job_id, outcome = excluded.outcome, backfill = true
            where excluded.backfill and fires.job_id is null
         returning job_id",
    )
    .bind(now)
    .bind(bigint(epoch))
    .bind(fires.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.fire_at).collect::<Vec<_>>())
    .bind(
        fires
            .iter()
            .map(|(_, fire)| fire.job.as_ref().map(|fired| fired.job.id))
            .collect::<Vec<_>>(),
    )
    .bind(fires.iter().map(|(_, fire)| fire.outcome.as_str()).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.reason.as_deref()).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.manual).collect::<Vec<_>>())
    .bind(fires.iter().map(|(_, fire)| fire.backfill).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let written: Vec<Option<JobId>> = rows.iter().map(|row| row.try_get("job_id")).collect::<Result<_, _>>()?;
    Ok(written.into_iter().flatten().collect())
}

/// The jobs that are to be inserted.
pub(super) fn jobs<'a>(decisions: &'a [Decision], made: &'a Made) -> impl Iterator<Item = &'a NewJob> {
    let fired = decisions
        .iter()
        .flat_map(|decision| &decision.fires)
        .filter_map(|fire| fire.job.as_ref());
    fired.map(|fired| &fired.job).filter(|job| made.contains(&job.id))
}

/// Adds the messages that turns answer. Their conversations are locked.
pub(super) async fn add_messages(tx: &mut PgConnection, decisions: &[Decision], made: &Made) -> Result<(), Error> {
    let fired = decisions
        .iter()
        .flat_map(|decision| &decision.fires)
        .filter_map(|fire| fire.job.as_ref());
    for fired in fired.filter(|fired| made.contains(&fired.job.id)) {
        if let (Some(id), Some(message)) = (fired.job.links.conversation_id, &fired.message) {
            add_message(tx, id, message).await?;
        }
    }
    Ok(())
}

/// Moves schedules on to their next due time. Only jobs that were `made` count: another due time may have been decided
/// before.
pub(super) async fn advance(tx: &mut PgConnection, decisions: &[Decision], made: &Made) -> Result<(), Error> {
    let moved: Vec<&Decision> = decisions
        .iter()
        .filter(|decision| decision.cancel_first.is_none())
        .collect();
    if moved.is_empty() {
        return Ok(());
    }
    let last = |decision: &Decision| decision.made(made).next_back().map(|(_, id)| id);
    let prior = |decision: &Decision| decision.made(made).rev().nth(1).map(|(_, id)| id);
    let on_time = |decision: &Decision| {
        let mut fires = decision.made(made).filter(|(fire, _)| !fire.manual && !fire.backfill);
        fires.next_back().map(|(fire, _)| fire.fire_at)
    };
    let counted = |decision: &Decision| {
        let fires = decision.made(made).filter(|(fire, _)| !fire.manual && !fire.backfill);
        i64::try_from(fires.count()).unwrap_or(i64::MAX)
    };
    sqlx::query(
        "update schedules set next_fire_at = t.next, due_at = t.due, last_fire_at = coalesce(t.fire_at, last_fire_at),
            prior_job_id = case when t.job is null then prior_job_id else coalesce(t.prior, last_job_id) end,
            last_job_id = coalesce(t.job, last_job_id), fired = fired + t.counted,
            enabled = enabled and t.unfit is null, paused_reason = coalesce(t.unfit, paused_reason)
         from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::uuid[], $6::uuid[],
            $7::bigint[], $8::text[]) as t(id, next, due, fire_at, job, prior, counted, unfit)
         where schedules.id = t.id",
    )
    .bind(moved.iter().map(|decision| decision.schedule_id).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| decision.next).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| decision.due_at).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| on_time(decision)).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| last(decision)).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| prior(decision)).collect::<Vec<_>>())
    .bind(moved.iter().map(|decision| counted(decision)).collect::<Vec<_>>())
    .bind(
        moved
            .iter()
            .map(|decision| decision.unfit.as_deref())
            .collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(())
}
