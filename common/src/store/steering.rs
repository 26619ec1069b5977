//! Messages to a turn or a run that is under way: its model is shown them before its next step.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::agents::json;
use super::row::int;
use super::turns::{NewMessage, write_message};
use super::{Error, Store};
use crate::ids::{ConversationId, JobId, MessageId, TenantId, WorkerId};
use crate::message::{Message, Part, Role};

/// A message that the model was shown.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The step before which it was.
    pub step: u32,
    /// The attempt that took it.
    pub attempt: u32,
    /// What was said.
    pub message: Message,
}

/// Of the input of a turn.
#[derive(Deserialize)]
struct TurnInput {
    message_id: MessageId,
}

fn message(row: &sqlx::postgres::PgRow) -> Result<Message, Error> {
    let created_at: DateTime<Utc> = row.try_get("created_at")?;
    Ok(Message {
        id: row.try_get::<MessageId, _>("id")?,
        ..Message::new(Role::User, row.try_get::<Json<Vec<Part>>, _>("parts")?.0, created_at)
    })
}

impl Store {
    /// Gives a job that has not ended a message. Answers whether it still was open.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn steer(&self, tenant_id: TenantId, job_id: JobId, message: &Message) -> Result<bool, Error> {
        // The lock makes whoever ends the job see the message, or this see the end.
        let done = sqlx::query(
            "insert into job_messages (id, job_id, parts, created_at)
             select $3, id, $4::text::json, $5 from jobs where id = $1 and tenant_id = $2
                and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying') for share",
        )
        .bind(job_id)
        .bind(tenant_id)
        .bind(message.id)
        .bind(json(&message.parts)?)
        .bind(message.created_at)
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Takes what was said to a job since the last time, for the model to be shown before `step`; in order.
    ///
    /// # Errors
    /// When Postgres is away. An attempt that is not current takes nothing.
    pub async fn take_messages(
        &self,
        job_id: JobId,
        (attempt, worker_id): (u32, WorkerId),
        step: u32,
    ) -> Result<Vec<Message>, Error> {
        let query = sqlx::query(
            "update job_messages m set step = $4, attempt = $2 from jobs j
             where m.job_id = $1 and m.step is null and j.id = $1 and j.state = 'running' and j.attempt = $2
                and j.worker_id = $3
             returning m.id, m.parts, m.created_at",
        )
        .bind(job_id)
        .bind(int(attempt))
        .bind(worker_id)
        .bind(int(step));
        let rows = self.on(self.talking(), async |connection| query.fetch_all(connection).await);
        let rows = rows.await?;
        let mut taken = rows.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        taken.sort_unstable_by_key(|message| message.id);
        Ok(taken)
    }

    /// What the model of a job was shown, in order.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn heard_messages(&self, job_id: JobId) -> Result<Vec<Heard>, Error> {
        let rows = sqlx::query(
            "select id, parts, created_at, step, attempt from job_messages where job_id = $1 and step is not null
             order by step, id",
        )
        .bind(job_id)
        .fetch_all(self.pool())
        .await?;
        let number = |row: &sqlx::postgres::PgRow, column: &str| -> Result<u32, Error> {
            Ok(u32::try_from(row.try_get::<i32, _>(column)?).unwrap_or(0))
        };
        rows.iter()
            .map(|row| {
                Ok(Heard {
                    step: number(row, "step")?,
                    attempt: number(row, "attempt")?,
                    message: message(row)?,
                })
            })
            .collect()
    }
}

/// Frees the conversation of a turn that ended while no attempt held it, and adds to it what was said to the turn and is not
/// in it. To be called by the transaction that ended the turn: whoever speaks to it later finds that it has ended.
pub(super) async fn leave_turn(
    tx: &mut PgConnection,
    job_id: JobId,
    conversation_id: ConversationId,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    sqlx::query("update conversations set active_job_id = null where id = $1 and active_job_id = $2")
        .bind(conversation_id)
        .bind(job_id)
        .execute(&mut *tx)
        .await?;
    if spoken_to(tx, &[job_id]).await?.is_empty() {
        return Ok(());
    }
    let turn: Option<i64> = sqlx::query_scalar(
        "select m.turn from messages m join conversations c on c.id = m.conversation_id and c.deleted_at is null
         where m.conversation_id = $1 and m.id = $2",
    )
    .bind(conversation_id)
    .bind(answered_by(tx, job_id).await?)
    .fetch_optional(&mut *tx)
    .await?;
    match turn {
        Some(turn) => add_unheard(tx, job_id, conversation_id, turn, now).await,
        // The conversation is deleted.
        None => Ok(()),
    }
}

/// The message that a turn answers; none when its input names none. Postgres does not read it: it refuses JSON with a NUL in
/// any of its texts, and those of an agent may have one.
async fn answered_by(tx: &mut PgConnection, job_id: JobId) -> Result<Option<MessageId>, Error> {
    let input: Vec<u8> = sqlx::query_scalar("select input from jobs where id = $1")
        .bind(job_id)
        .fetch_one(tx)
        .await?;
    let input = serde_json::from_slice::<TurnInput>(&input);
    Ok(input.ok().map(|input| input.message_id))
}

/// Those of these jobs to which something was said.
pub(super) async fn spoken_to(tx: &mut PgConnection, job_ids: &[JobId]) -> Result<Vec<JobId>, Error> {
    let sql = "select distinct job_id from job_messages where job_id = any($1)";
    Ok(sqlx::query_scalar(sql).bind(job_ids).fetch_all(tx).await?)
}

/// Adds to a conversation what was said to a turn that has ended and is not in it, because no attempt heard it or because the
/// one that did was lost: the next turn's model sees it.
pub(super) async fn add_unheard(
    tx: &mut PgConnection,
    job_id: JobId,
    conversation_id: ConversationId,
    turn: i64,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let rows = sqlx::query(
        "select id, parts, created_at from job_messages said
         where job_id = $1 and not exists (select from messages m where m.id = said.id) order by id",
    )
    .bind(job_id)
    .fetch_all(&mut *tx)
    .await?;
    for row in &rows {
        let message = message(row)?;
        let position: i64 = sqlx::query_scalar(
            "update conversations set position = position + 1, updated_at = $2 where id = $1 returning position",
        )
        .bind(conversation_id)
        .bind(now)
        .fetch_one(&mut *tx)
        .await?;
        let new = NewMessage {
            conversation_id,
            position,
            turn,
            message: &message,
        };
        write_message(tx, &new).await?;
    }
    Ok(())
}
