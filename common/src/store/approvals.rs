//! Approvals: tool calls that run only when a person says so.
//!
//! A question is written with the change that lets its job wait, so no answer can come too early. An answer locks the
//! job's row; the last one queues the job that waits in the same transaction. A job that has several questions may be on its
//! way back for another of them: while it is queued or waits for a retry its next attempt finds the answer. An attempt that
//! runs numbers the events of its job, so nobody else can write that it was answered: until it waits again, which it does as
//! soon as it has looked, answers are put off.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::events::{Chunk, insert_chunks};
use super::row::{bigint, int};
use super::{Error, Store, wait};
use crate::ids::{AgentId, ApiKeyId, ApprovalId, ConversationId, JobId, TenantId, WorkerId};
use crate::job::Job;
use crate::job::approval::{ApprovalState, NewApproval};
use crate::job::event::{Event, EventBody};

/// A question to a person.
#[derive(Clone, Debug)]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// The job that waits.
    pub job_id: JobId,
    /// The conversation that the job is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// The agent that the job runs.
    pub agent_id: Option<AgentId>,
    /// The step of the call, its place in it, and the attempt whose answer holds it.
    pub call: (u32, u32, u32),
    /// The model's name for the call.
    pub tool_call_id: String,
    /// The tool.
    pub tool: String,
    /// What it would be called with.
    pub input: Value,
    /// What became of the question.
    pub state: ApprovalState,
    /// What the person said.
    pub comment: Option<String>,
    /// When it was asked.
    pub created_at: DateTime<Utc>,
    /// When the answer is no, unless there is one.
    pub deadline: DateTime<Utc>,
    /// When it was answered.
    pub answered_at: Option<DateTime<Utc>>,
    /// The key that answered.
    pub answered_by: Option<ApiKeyId>,
}

/// Which approvals; what is set must hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApprovalFilter {
    /// In this state.
    pub state: Option<ApprovalState>,
    /// Of this job.
    pub job_id: Option<JobId>,
    /// Of a turn of this conversation.
    pub conversation_id: Option<ConversationId>,
}

/// An answer of a person.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Whether the tool may run.
    pub is_approved: bool,
    /// What they say to the model.
    pub comment: Option<String>,
    /// The key that answers.
    pub by: Option<ApiKeyId>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Answered {
    /// It is committed. The job goes on when this was the last open question.
    Taken(Box<Approval>, Box<Job>),
    /// The question is not open any more.
    Closed(Box<Approval>),
    /// An attempt of the job just looks at what was answered: the same answer may be given a moment later.
    Later,
}

/// The state as a reader should see it: a question that was open when its job ended is nobody's.
const COLUMNS: &str = "a.id, a.job_id, a.conversation_id, a.agent_id, a.step, a.place, a.parent, a.tool_call_id, a.tool, \
    a.input, a.comment, a.created_at, a.deadline, a.answered_at, a.answered_by, \
    case when a.state = 'open' and not exists (select from jobs j where j.id = a.job_id \
            and (j.finished_at is null or j.finished_at >= a.deadline)) \
        then 'withdrawn' when a.state = 'open' and a.deadline <= $1 then 'expired' else a.state end as state";

fn approval(row: &PgRow) -> Result<Approval, Error> {
    let number =
        |column: &str| -> Result<u32, Error> { Ok(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0)) };
    let state: &str = row.try_get("state")?;
    Ok(Approval {
        id: row.try_get("id")?,
        job_id: row.try_get("job_id")?,
        conversation_id: row.try_get("conversation_id")?,
        agent_id: row.try_get("agent_id")?,
        call: (number("step")?, number("place")?, number("parent")?),
        tool_call_id: row.try_get("tool_call_id")?,
        tool: row.try_get("tool")?,
        input: row.try_get::<Json<Value>, _>("input")?.0,
        state: ApprovalState::parse(state).ok_or_else(|| Error::Corrupt(format!("unknown state {state}")))?,
        comment: row.try_get("comment")?,
        created_at: row.try_get("created_at")?,
        deadline: row.try_get("deadline")?,
        answered_at: row.try_get("answered_at")?,
        answered_by: row.try_get("answered_by")?,
    })
}

/// Writes the questions of a job that begins to wait.
pub(super) async fn insert(tx: &mut PgConnection, job_id: JobId, asked: &[NewApproval]) -> Result<(), Error> {
    for new in asked {
        let (step, place, parent) = new.call;
        sqlx::query(
            "insert into approvals (id, tenant_id, job_id, conversation_id, agent_id, step, place, parent, tool_call_id,
                tool, input, state, created_at, deadline)
             select $2, tenant_id, id, conversation_id, agent_id, $3, $4, $5, $6, $7, $8::text::json, 'open', $9, $10
             from jobs where id = $1",
        )
        .bind(job_id)
        .bind(new.id)
        .bind(int(step))
        .bind(int(place))
        .bind(int(parent))
        .bind(new.tool_call_id.replace('\0', "\u{fffd}"))
        .bind(new.tool.replace('\0', "\u{fffd}"))
        .bind(new.input.to_string())
        .bind(new.created_at)
        .bind(new.deadline)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

impl Store {
    /// A tenant's approval, as it is at `now`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn approval(
        &self,
        tenant_id: TenantId,
        id: ApprovalId,
        now: DateTime<Utc>,
    ) -> Result<Option<Approval>, Error> {
        let sql = format!("select {COLUMNS} from approvals a where a.id = $2 and a.tenant_id = $3");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(id)
            .bind(tenant_id)
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(approval).transpose()
    }

    /// Up to `limit` approvals of a tenant that are older than `before`, newest first, as they are at `now`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn approvals(
        &self,
        tenant_id: TenantId,
        filter: &ApprovalFilter,
        before: Option<ApprovalId>,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<Vec<Approval>, Error> {
        // What is open now is open in its row: said twice, so that the partial index serves the usual question.
        let open = if filter.state == Some(ApprovalState::Open) {
            "and a.state = 'open'"
        } else {
            ""
        };
        let sql = format!(
            "select * from (select {COLUMNS} from approvals a where a.tenant_id = $2 {open}
                and ($3::uuid is null or a.id < $3) and ($4::uuid is null or a.job_id = $4)
                and ($5::uuid is null or a.conversation_id = $5)) as a
             where $6::text is null or a.state = $6 order by a.id desc limit $7"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(now)
            .bind(tenant_id)
            .bind(before)
            .bind(filter.job_id)
            .bind(filter.conversation_id)
            .bind(filter.state.map(ApprovalState::as_str))
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(approval).collect()
    }

    /// Answers a question. `None` when the tenant has no such one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn answer_approval(
        &self,
        tenant_id: TenantId,
        id: ApprovalId,
        answer: &Answer,
    ) -> Result<Option<Answered>, Error> {
        self.within(async {
            let Some(found) = self.approval(tenant_id, id, answer.at).await? else {
                return Ok(None);
            };
            if found.state != ApprovalState::Open {
                return Ok(Some(Answered::Closed(Box::new(found))));
            }
            let mut tx = self.pool().begin().await?;
            // Whoever ends the wait otherwise, takes the job or ends it, locks the same row first.
            let (seq, attempt, is_running): (i64, i32, bool) =
                sqlx::query_as("select seq, attempt, state = 'running' from jobs where id = $1 for update")
                    .bind(found.job_id)
                    .fetch_one(&mut *tx)
                    .await?;
            if is_running {
                return Ok(Some(Answered::Later));
            }
            let state = if answer.is_approved {
                ApprovalState::Approved
            } else {
                ApprovalState::Denied
            };
            let changed = sqlx::query(
                "update approvals set state = $2, comment = $3, answered_at = $4, answered_by = $5
                 where id = $1 and state = 'open' and deadline > $4
                    and exists (select from jobs where id = job_id and finished_at is null)",
            )
            .bind(id)
            .bind(state.as_str())
            .bind(&answer.comment)
            .bind(answer.at)
            .bind(answer.by)
            .execute(&mut *tx)
            .await?;
            if changed.rows_affected() == 0 {
                drop(tx);
                let now = self.approval(tenant_id, id, answer.at).await?;
                return Ok(now.map(|now| Answered::Closed(Box::new(now))));
            }
            let body = EventBody::ApprovalAnswered {
                approval_id: id,
                tool_call_id: found.tool_call_id.clone(),
                state,
                comment: answer.comment.clone(),
            };
            let event = Event {
                seq: u64::try_from(seq).unwrap_or(0) + 1,
                at: answer.at,
                attempt: u32::try_from(attempt).unwrap_or(0),
                body,
            };
            say(&mut tx, found.job_id, event).await?;
            let job = wait::answered(&mut tx, found.job_id, answer.at).await?;
            tx.commit().await?;
            let approval = Approval {
                state,
                comment: answer.comment.clone(),
                answered_at: Some(answer.at),
                answered_by: answer.by,
                ..found
            };
            Ok(Some(Answered::Taken(Box::new(approval), Box::new(job))))
        })
        .await
    }

    /// Closes the open questions of a job whose attempt goes on: nobody answered in time. Answers all of the job's, and
    /// the ids of those that this closed.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn close_approvals(
        &self,
        job_id: JobId,
        (attempt, worker_id): (u32, WorkerId),
        now: DateTime<Utc>,
    ) -> Result<(Vec<Approval>, Vec<ApprovalId>), Error> {
        let closed = sqlx::query_scalar(
            "update approvals a set state = 'expired', answered_at = $4 from jobs j
             where a.job_id = $1 and a.state = 'open' and a.deadline <= $4 and j.id = $1 and j.state = 'running'
                and j.attempt = $2 and j.worker_id = $3
             returning a.id",
        )
        .bind(job_id)
        .bind(int(attempt))
        .bind(worker_id)
        .bind(now)
        .fetch_all(self.pool())
        .await?;
        let rows = sqlx::query(
            "select id, job_id, conversation_id, agent_id, step, place, parent, tool_call_id, tool, input, comment,
                created_at, deadline, answered_at, answered_by, state
             from approvals where job_id = $1 order by step, place",
        )
        .bind(job_id)
        .fetch_all(self.pool())
        .await?;
        let all = rows.iter().map(approval).collect::<Result<_, _>>()?;
        Ok((all, closed))
    }
}

/// Writes an event of a job whose row is locked and that no attempt holds.
async fn say(tx: &mut PgConnection, job_id: JobId, event: Event) -> Result<(), Error> {
    let seq = event.seq;
    if let Some(chunk) = Chunk::pack(job_id, &[event]) {
        insert_chunks(tx, &[&chunk]).await?;
    }
    sqlx::query("update jobs set seq = $2 where id = $1")
        .bind(job_id)
        .bind(bigint(seq))
        .execute(tx)
        .await?;
    Ok(())
}
