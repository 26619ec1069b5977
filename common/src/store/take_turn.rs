//! Taking a turn: a user's message, and the job that answers it.
//!
//! Most turns come when no other is open. Such a one is written by a single statement, if the conversation is still as
//! the request has seen it; otherwise a transaction locks the conversation and looks at what is open. A turn in a branch is
//! written with the branch.

use std::sync::LazyLock;

use sqlx::PgConnection;

use super::admit::{has_strategies, refuse, supersede};
use super::agents::json;
use super::branch::{BranchAt, branch};
use super::idempotency::{Idempotency, remember};
use super::insert::{Accepted, OF_JOBS, insert_if, insert_jobs, statement_if};
use super::row::bigint;
use super::turns::{after_open_turns, insert_message, is_busy, said, title};
use super::{Class, Error, Store};
use crate::ids::{ConversationId, JobId, MessageId};
use crate::job::NewJob;
use crate::message::Message;

/// A turn about to be submitted.
#[derive(Clone, Debug)]
pub struct NewTurn {
    /// The user's message.
    pub message: Message,
    /// The job that answers it; its id is made when its place in the conversation is known.
    pub job: NewJob,
    /// Position of the conversation's last message when the request read it.
    pub seen: u64,
    /// Whether it is refused while another turn is open.
    pub reject_if_busy: bool,
    /// Remembers the request.
    pub idempotency: Option<Idempotency>,
}

/// What became of a turn.
#[derive(Debug)]
pub enum TurnAccepted {
    /// Message and job are committed; this is the job.
    Inserted(Box<NewJob>),
    /// The request was made before: this was its job.
    Repeated(JobId),
    /// The key was used before with another request.
    KeyReused,
    /// Another turn is open.
    Busy,
    /// As many jobs of its concurrency key are open as its limit allows.
    Rejected,
    /// There is no such conversation any more.
    Gone,
}

/// Whoever takes a turn changes the conversation's position, so one that is as it was seen has no turn that this statement's
/// snapshot does not show: whoever comes second finds another position, and writes nothing. A redrive changes none; a turn
/// beside one waits for it or goes before it, as their ids say.
static UNLESS_BUSY: LazyLock<String> = LazyLock::new(|| {
    let value = |place: usize| format!("${}", OF_JOBS + place);
    let [id, tenant, seen, title, job, created_at] = [1, 2, 3, 4, 5, 6].map(value);
    let [message, parts, said, at, key, fingerprint] = [7, 8, 9, 10, 11, 12].map(value);
    let before = format!(
        "seen as (
            update conversations set position = position + 1, updated_at = {created_at}::timestamptz,
                title = case when title = '' then {title} else title end
            where id = {id} and tenant_id = {tenant} and deleted_at is null and position = {seen}
                and not exists (select from jobs where conversation_id = {id}
                    and state in ('scheduled', 'queued', 'running', 'waiting', 'retrying'))
                and not exists (select from idempotency_keys where tenant_id = {tenant} and key = {key}::text)
            returning position
         ), message as (
            insert into messages (id, conversation_id, position, turn, role, parts, said, created_at)
            select {message}::uuid, {id}, position, position, 'user', {parts}::text::json, {said}::text, {at}::timestamptz
            from seen
         ), key as (
            insert into idempotency_keys (tenant_id, key, fingerprint, job_ids, created_at)
            select {tenant}::uuid, {key}, {fingerprint}::bytea, array[{job}::uuid], {created_at} from seen where {key} is not null
         ),"
    );
    statement_if(&before, "where exists (select from seen)")
});

impl Store {
    /// Adds a user's message and the job that answers it, or neither. The lock on the conversation's row makes the order of
    /// its messages that of its jobs.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_turn(&self, id: ConversationId, mut turn: NewTurn) -> Result<TurnAccepted, Error> {
        turn.job.id = JobId::new();
        if !has_strategies(&[&turn.job]) {
            match self.insert_unless_busy(id, &turn).await {
                Ok(true) => return Ok(TurnAccepted::Inserted(Box::new(turn.job))),
                Ok(false) => {}
                // A key that somebody else used just now.
                Err(error) if error.class() == Class::Data => {}
                Err(error) => return Err(error),
            }
        }
        self.within(async {
            let mut tx = self.pool().begin_planned().await?;
            let accepted = take(&mut tx, id, turn).await?;
            if let TurnAccepted::Inserted(_) = accepted {
                tx.commit().await?;
            }
            Ok(accepted)
        })
        .await
    }

    /// Makes a branch with this id before the turn of a message, and takes a turn in it; or neither.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_turn_in_branch(
        &self,
        from: ConversationId,
        asked: MessageId,
        id: ConversationId,
        mut turn: NewTurn,
    ) -> Result<TurnAccepted, Error> {
        turn.job.links.conversation_id = Some(id);
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let (from, at) = ((turn.job.tenant_id, from), BranchAt::BeforeTurnOf(asked));
            if branch(&mut tx, from, at, (id, None), turn.job.created_at)
                .await?
                .is_none()
            {
                return Ok(TurnAccepted::Gone);
            }
            let accepted = take(&mut tx, id, turn).await?;
            if let TurnAccepted::Inserted(_) = accepted {
                tx.commit().await?;
            }
            Ok(accepted)
        })
        .await
    }

    /// Whether it was written.
    async fn insert_unless_busy(&self, id: ConversationId, turn: &NewTurn) -> Result<bool, Error> {
        let (message, key) = (&turn.message, turn.idempotency.as_ref());
        let insert = insert_if(UNLESS_BUSY.as_str(), &turn.job)
            .bind(id)
            .bind(turn.job.tenant_id)
            .bind(bigint(turn.seen))
            .bind(title(message))
            .bind(turn.job.id)
            .bind(turn.job.created_at)
            .bind(message.id)
            .bind(json(&message.parts)?)
            .bind(said(message))
            .bind(message.created_at)
            .bind(key.map(|key| key.key.clone()))
            .bind(key.map(|key| key.fingerprint.to_vec()));
        let done = self.on(self.talking(), async |connection| insert.execute(connection).await);
        Ok(done.await?.rows_affected() == 1)
    }
}

/// Takes a turn in a transaction, which is to be committed if it is inserted.
async fn take(tx: &mut PgConnection, id: ConversationId, turn: NewTurn) -> Result<TurnAccepted, Error> {
    let NewTurn {
        message,
        mut job,
        seen: _,
        reject_if_busy,
        idempotency,
    } = turn;
    let position: Option<i64> = sqlx::query_scalar(
        "update conversations set position = position + 1, updated_at = $3,
            title = case when title = '' then $4 else title end
         where id = $1 and tenant_id = $2 and deleted_at is null returning position",
    )
    .bind(id)
    .bind(job.tenant_id)
    .bind(job.created_at)
    .bind(title(&message))
    .fetch_optional(&mut *tx)
    .await?;
    let Some(position) = position else {
        return Ok(TurnAccepted::Gone);
    };
    (job.id, job.created_at) = after_open_turns(tx, id, job.created_at).await?;
    if let Some(idempotency) = idempotency {
        match remember(tx, &[&job], &idempotency).await? {
            Accepted::Inserted | Accepted::Decided(_) => {}
            Accepted::Repeated(ids) => {
                return Ok(ids
                    .first()
                    .copied()
                    .flatten()
                    .map_or(TurnAccepted::Gone, TurnAccepted::Repeated));
            }
            Accepted::KeyReused => return Ok(TurnAccepted::KeyReused),
        }
    }
    if reject_if_busy && is_busy(tx, id).await? {
        return Ok(TurnAccepted::Busy);
    }
    insert_message(tx, id, position, &message).await?;
    if has_strategies(&[&job]) && !refuse(tx, &[&job]).await?.is_empty() {
        return Ok(TurnAccepted::Rejected);
    }
    insert_jobs(tx, &[&job]).await?;
    // Those that give way are stopped by the redispatch duty.
    supersede(tx, &[&job], job.created_at).await?;
    Ok(TurnAccepted::Inserted(Box::new(job)))
}
