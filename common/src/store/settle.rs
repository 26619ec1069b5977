//! Settling: the last write of an attempt, many attempts to a statement.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::admit::{Decided, admit_inserted};
use super::days::Table;
use super::events::{Chunk, insert_chunks};
use super::insert::insert_jobs;
use super::row::{bigint, int};
use super::steering::add_unheard;
use super::turns::{NewMessage, write_message};
use super::{Error, Store, approvals, index, wait};
use crate::ids::{ConversationId, JobId, MessageId, WorkerId};
use crate::job::approval::NewApproval;
use crate::job::decision::Decision;
use crate::job::{Failure, Job, NewJob, StateName, Usage};
use crate::message::Message;

/// How an attempt ends.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The job.
    pub job_id: JobId,
    /// The fence.
    pub attempt: u32,
    /// What becomes of the job.
    pub decision: Decision,
    /// JSON of the result, when there is one.
    pub result: Option<Vec<u8>>,
    /// Totals over all attempts.
    pub usage: Usage,
    /// The number of this change, after all events of the attempt.
    pub seq: u64,
    /// The attempt's events that are not written yet, the change's own included when it does not end the job.
    pub chunk: Option<Chunk>,
    /// When the attempt was claimed.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// What a turn adds to its conversation.
    pub turn: Option<TurnEnd>,
    /// The job that waits for this one.
    pub parent_id: Option<JobId>,
    /// Jobs that are submitted with the change, when the job waits for them.
    pub children: Vec<NewJob>,
    /// What people are asked, when the job waits for their answer.
    pub approvals: Vec<NewApproval>,
}

/// What a transaction of settlements changed.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The jobs whose attempt it ended, and their new state.
    pub changed: Vec<(JobId, StateName)>,
    /// Jobs whose wait it ended: they are queued.
    pub woken: Vec<Job>,
    /// What the strategies of the submitted children decided.
    pub decided: Decided,
}

impl Committed {
    /// The new state of a job that it changed.
    pub fn state(&self, id: JobId) -> Option<StateName> {
        self.changed
            .iter()
            .find(|(changed, _)| *changed == id)
            .map(|(_, state)| *state)
    }
}

/// What a turn adds to its conversation.
#[derive(Clone, Debug)]
pub struct TurnEnd {
    /// The conversation.
    pub conversation_id: ConversationId,
    /// The message that it answers; none when it did not come to read it.
    pub answers: Option<MessageId>,
    /// The messages, in order.
    pub messages: Vec<Message>,
}

/// The columns that a decision sets.
struct Columns {
    state: StateName,
    outcome: &'static str,
    due_at: Option<DateTime<Utc>>,
    queued_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    failed: i32,
    failure: Option<Failure>,
    waits_for: Option<String>,
}

fn columns(settlement: &Settlement) -> Columns {
    let at = settlement.finished_at;
    let base = Columns {
        state: StateName::Succeeded,
        outcome: "succeeded",
        due_at: None,
        queued_at: None,
        finished_at: Some(at),
        failed: 0,
        failure: None,
        waits_for: None,
    };
    match &settlement.decision {
        Decision::Succeed => base,
        Decision::Fail(failure) => Columns {
            state: StateName::Failed,
            outcome: "failed",
            failed: 1,
            failure: Some(failure.clone()),
            ..base
        },
        Decision::Cancel => Columns {
            state: StateName::Cancelled,
            outcome: "cancelled",
            ..base
        },
        Decision::RetryAt(due_at, failure) => Columns {
            state: StateName::Retrying,
            outcome: "retrying",
            due_at: Some(*due_at),
            finished_at: None,
            failed: 1,
            failure: Some(failure.clone()),
            ..base
        },
        Decision::GiveBack => Columns {
            state: StateName::Queued,
            outcome: "interrupted",
            queued_at: Some(at),
            finished_at: None,
            ..base
        },
        Decision::Wait(wait) => Columns {
            state: StateName::Waiting,
            outcome: "waiting",
            due_at: wait.deadline,
            finished_at: None,
            waits_for: serde_json::to_string(&wait.waits_for).ok(),
            ..base
        },
    }
}

impl Store {
    /// Settles attempts of one worker in one transaction and answers the jobs that it changed. One that would go on although
    /// somebody asked to cancel it is cancelled. One that is missing was not the worker's any more: its lease is lost, and
    /// nothing of it was written. A parent whose wait this ends is queued by it.
    ///
    /// # Errors
    /// When Postgres is away: then nothing was written. The call may be repeated: what it settled before is missing
    /// from the answer, so a caller that does not know asks [`Self::is_settled`].
    pub async fn settle(&self, worker_id: WorkerId, settlements: &[Settlement]) -> Result<Committed, Error> {
        self.within(async {
            let ids = settlements.iter().map(|settlement| settlement.job_id);
            let table = &self.days().table(self, ids).await?;
            if settlements.iter().all(is_lone) {
                // One statement is a transaction: two round trips less.
                let mut lent = self.moving(table).lend().await?;
                let changed = update(&mut lent.connection, table, worker_id, settlements).await;
                let changed = lent.done(changed)?;
                return Ok(Committed {
                    changed,
                    ..Committed::default()
                });
            }
            let mut tx = self.pool().begin().await?;
            let changed = update(&mut tx, table, worker_id, settlements).await?;
            let states: HashMap<JobId, StateName> = changed.iter().copied().collect();
            let kept: Vec<(&Settlement, StateName)> = settlements
                .iter()
                .filter_map(|s| Some((s, *states.get(&s.job_id)?)))
                .collect();
            let chunks: Vec<&Chunk> = kept
                .iter()
                .filter_map(|(settlement, _)| settlement.chunk.as_ref())
                .collect();
            insert_chunks(&mut tx, &chunks).await?;
            for (settlement, state) in &kept {
                if let Some(turn) = &settlement.turn {
                    end_turn(&mut tx, settlement, turn, state.is_terminal()).await?;
                }
            }
            let (woken, decided) = follow_up(&mut tx, &kept).await?;
            tx.commit().await?;
            Ok(Committed {
                changed,
                woken,
                decided,
            })
        })
        .await
    }

    /// Whether this attempt has ended, by the hand of this worker.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn is_settled(&self, job_id: JobId, attempt: u32, worker_id: WorkerId) -> Result<bool, Error> {
        let found: Option<i32> =
            sqlx::query_scalar("select 1 from attempts where job_id = $1 and attempt = $2 and worker_id = $3")
                .bind(job_id)
                .bind(int(attempt))
                .bind(worker_id)
                .fetch_optional(self.pool())
                .await?;
        Ok(found.is_some())
    }
}

/// Whether nothing is written with it but the job's row and the attempt's.
fn is_lone(settlement: &Settlement) -> bool {
    let has_more = settlement.chunk.is_some() || settlement.turn.is_some() || settlement.parent_id.is_some();
    !has_more && !matches!(settlement.decision, Decision::Wait(_))
}

/// Inserts the children of those that wait, and wakes those whose wait is over: parents of what ended, and what waits
/// for jobs that ended before. Jobs without either cost nothing.
async fn follow_up(tx: &mut PgConnection, kept: &[(&Settlement, StateName)]) -> Result<(Vec<Job>, Decided), Error> {
    let mut parents: Vec<JobId> = Vec::new();
    let mut children: Vec<&NewJob> = Vec::new();
    for (settlement, state) in kept {
        if *state == StateName::Waiting {
            children.extend(&settlement.children);
            parents.push(settlement.job_id);
        } else if state.is_terminal() {
            parents.extend(settlement.parent_id);
        }
    }
    insert_jobs(tx, &children).await?;
    for (settlement, _) in kept.iter().filter(|(_, state)| *state == StateName::Waiting) {
        approvals::insert(tx, settlement.job_id, &settlement.approvals).await?;
    }
    let now = kept.iter().map(|(settlement, _)| settlement.finished_at).max();
    let Some(now) = now else { return Ok(Default::default()) };
    let decided = admit_inserted(tx, &children, now).await?;
    parents.sort_unstable();
    parents.dedup();
    Ok((wait::wake(tx, &parents, now).await?, decided))
}

/// One statement: the rows, and an `attempts` row for each that changed.
async fn update(
    connection: &mut PgConnection,
    table: &Table,
    worker_id: WorkerId,
    settlements: &[Settlement],
) -> Result<Vec<(JobId, StateName)>, Error> {
    let columns: Vec<Columns> = settlements.iter().map(columns).collect();
    let is_given_back = columns.iter().any(|columns| columns.state == StateName::Queued);
    let changed: Vec<(JobId, String)> = sqlx::query_as(AssertSqlSafe(update_sql(table, is_given_back)))
        .bind(worker_id)
        .bind(settlements.iter().map(|s| s.job_id.uuid()).collect::<Vec<Uuid>>())
        .bind(settlements.iter().map(|s| int(s.attempt)).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.state.as_str()).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.outcome).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.due_at).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.queued_at).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.finished_at).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.failed).collect::<Vec<_>>())
        .bind(
            columns
                .iter()
                .map(|c| c.failure.as_ref().map(|f| f.code.as_str()))
                .collect::<Vec<_>>(),
        )
        .bind(
            columns
                .iter()
                .map(|c| c.failure.as_ref().map(|f| f.message.replace('\0', "\u{fffd}")))
                .collect::<Vec<_>>(),
        )
        .bind(settlements.iter().map(|s| s.result.as_deref()).collect::<Vec<_>>())
        .bind(settlements.iter().map(used).collect::<Vec<_>>())
        .bind(settlements.iter().map(|s| bigint(s.seq)).collect::<Vec<_>>())
        .bind(settlements.iter().map(|s| s.started_at).collect::<Vec<_>>())
        .bind(settlements.iter().map(|s| s.finished_at).collect::<Vec<_>>())
        .bind(columns.iter().map(|c| c.waits_for.as_deref()).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(changed
        .into_iter()
        .filter_map(|(id, state)| Some((id, StateName::parse(&state)?)))
        .collect())
}

/// The statement of [`update`]; only what gives jobs back looks after their places in `queued_jobs`.
fn update_sql(table: &Table, is_given_back: bool) -> String {
    let given_back = if is_given_back {
        format!(", queued as ({})", index::enter("changed"))
    } else {
        String::new()
    };
    let prune = table.prune("$2");
    format!(
        "with s as materialized (
            -- As in a claim.
            select s.*, 'running'::text as held_state, finished_at is null as goes_on
            from unnest($2::uuid[], $3::integer[], $4::text[], $5::text[], $6::timestamptz[],
                $7::timestamptz[], $8::timestamptz[], $9::integer[], $10::text[], $11::text[], $12::bytea[],
                $13::json[], $14::bigint[], $15::timestamptz[], $16::timestamptz[], $17::text[])
            as s(id, attempt, state, outcome, due_at, queued_at, finished_at, failed, error_code, error_message, result,
                usage, seq, started_at, ended_at, waits_for)
         ), changed as (
            -- Whoever waited for a row reads it again, so that a request to cancel that is committed meanwhile is seen.
            -- A try that would go on ends as cancelled then, and is no failure any more.
            update {table} as jobs set result = s.result, usage = s.usage,
                failures = jobs.failures
                    + case when s.goes_on and jobs.cancel_requested_at is not null then 0 else s.failed end,
                seq = case when s.goes_on and jobs.cancel_requested_at is not null then s.seq + 1 else s.seq end,
                state = case when s.goes_on and jobs.cancel_requested_at is not null then 'cancelled'
                    else s.state end,
                due_at = case when not (s.goes_on and jobs.cancel_requested_at is not null) then s.due_at end,
                queued_at = case when s.goes_on and jobs.cancel_requested_at is not null then jobs.queued_at
                    else coalesce(s.queued_at, jobs.queued_at) end,
                finished_at = case when s.goes_on and jobs.cancel_requested_at is not null then s.ended_at
                    else s.finished_at end,
                error_code = case when not (s.goes_on and jobs.cancel_requested_at is not null) then s.error_code end,
                error_message = case when not (s.goes_on and jobs.cancel_requested_at is not null)
                    then s.error_message end,
                waits_for = case when s.goes_on and jobs.cancel_requested_at is not null then jobs.waits_for
                    else coalesce(s.waits_for::json, jobs.waits_for) end
            from s
            where jobs.id = s.id and jobs.state = s.held_state and jobs.attempt = s.attempt
                and jobs.worker_id = $1{prune}
            returning jobs.id, jobs.state, jobs.tenant_id, jobs.queue, jobs.class, jobs.priority, jobs.attempt,
                jobs.concurrency_key, jobs.rate_key, jobs.agent_id, jobs.conversation_id, s.started_at, s.ended_at, s.outcome, s.error_code, s.error_message
         ), ended as (
            insert into attempts (job_id, attempt, worker_id, started_at, finished_at, outcome, error_code, error_message)
            select id, attempt, $1, started_at, ended_at, case when state = 'cancelled' then 'cancelled' else outcome end,
                error_code, error_message
            from changed
         ){given_back}
         select id, state from changed"
    )
}

/// A job that used nothing keeps a null.
fn used(settlement: &Settlement) -> Option<Json<&Usage>> {
    (settlement.usage != Usage::default()).then_some(Json(&settlement.usage))
}

/// Adds a turn's messages after the last one, and frees the conversation when the job has ended. One that was deleted
/// meanwhile takes nothing.
async fn end_turn(tx: &mut PgConnection, settlement: &Settlement, turn: &TurnEnd, over: bool) -> Result<(), Error> {
    let added = i64::try_from(turn.messages.len()).unwrap_or(i64::MAX);
    let freed: Option<(i64, Option<i64>, bool)> = sqlx::query_as(
        "update conversations set position = position + $2, updated_at = $3,
            active_job_id = case when $4 and active_job_id = $5 then null else active_job_id end
         where id = $1 and deleted_at is null
         returning position, (select m.turn from messages m where m.conversation_id = $1 and m.id = $6),
            $4 and exists (select from job_messages m where m.job_id = $5)",
    )
    .bind(turn.conversation_id)
    .bind(added)
    .bind(settlement.finished_at)
    .bind(over)
    .bind(settlement.job_id)
    .bind(turn.answers)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((last, number, was_spoken_to)) = freed else {
        return Ok(());
    };
    let number = number.unwrap_or(last - added + 1);
    for (position, message) in (last - added + 1..).zip(&turn.messages) {
        let new = NewMessage {
            conversation_id: turn.conversation_id,
            position,
            turn: number,
            message,
        };
        write_message(tx, &new).await?;
    }
    if was_spoken_to {
        add_unheard(
            tx,
            settlement.job_id,
            turn.conversation_id,
            number,
            settlement.finished_at,
        )
        .await?;
    }
    Ok(())
}
