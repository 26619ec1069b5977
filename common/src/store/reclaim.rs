//! Taking over the job of a worker that is gone.

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::events::{Chunk, insert_chunks, last_written};
use super::row::{self, COLUMNS, bigint, int, qualified};
use super::steering::leave_turn;
use super::{Error, Store, index, wait};
use crate::ids::{JobId, WorkerId};
use crate::job::decision::{Counts, Decision, reclaim};
use crate::job::event::{Event, EventBody, UNWRITTEN_MAX};
use crate::job::{Failure, FailureCode, Job};

impl Store {
    /// Running jobs that were claimed before `claimed_before` and have an id above `after`, in order of id.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn running_after(
        &self,
        after: JobId,
        claimed_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        self.within(async {
            let sql = format!(
                "select {} from (select distinct unnest(job_ids) as id from handouts where claimed_at < $2) as held
                 join jobs on jobs.id = held.id
                 where jobs.state = 'running' and jobs.id > $1 and jobs.started_at < $2 order by jobs.id limit $3",
                qualified()
            );
            let rows = sqlx::query(AssertSqlSafe(sql))
                .bind(after)
                .bind(claimed_before)
                .bind(i64::from(limit))
                .fetch_all(self.pool())
                .await?;
            // One that this version cannot read keeps nobody else from a lease.
            let read = |row| {
                row::job(row)
                    .inspect_err(|error| tracing::error!(%error, "a running job is unread"))
                    .ok()
            };
            Ok(rows.iter().filter_map(read).collect())
        })
        .await
    }

    /// Takes an attempt away from its worker, unless it settled meanwhile or its worker says that it lives.
    /// `tail` is what Redis still has of the attempt's events after the last written one; `gap` says that some may be
    /// lost. Answers the job after it; `None` when there was nothing to take.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn reclaim(
        &self,
        job_id: JobId,
        attempt: u32,
        tail: &[Event],
        gap: bool,
        now: DateTime<Utc>,
    ) -> Result<Option<Job>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let sql =
                format!("select {COLUMNS} from jobs where id = $1 and state = 'running' and attempt = $2 for update");
            let found = sqlx::query(AssertSqlSafe(sql))
                .bind(job_id)
                .bind(int(attempt))
                .fetch_optional(&mut *tx)
                .await?;
            let Some(found) = found else { return Ok(None) };
            let job = row::job(&found)?;
            if is_alive(&mut tx, &job, now).await? {
                return Ok(None);
            }
            let counts = Counts {
                failures: job.failures,
                losses: job.losses,
                max_attempts: job.max_attempts,
                backoff: job.backoff,
                retry_on: &job.retry_on,
                cancel_requested: job.cancel_requested_at.is_some(),
            };
            let decision = reclaim(counts);
            let written = last_written(&mut tx, job_id).await?;
            let (events, seq) = last_words(&job, written, tail, gap, &decision, now);
            if let Some(chunk) = Chunk::pack(job_id, &events) {
                insert_chunks(&mut tx, &[&chunk]).await?;
            }
            let job = write(&mut tx, &job, &decision, seq, now).await?;
            if let (Some(parent_id), true) = (job.parent_id, job.state.is_terminal()) {
                wait::wake(&mut tx, &[parent_id], now).await?;
            }
            tx.commit().await?;
            Ok(Some(job))
        })
        .await
    }
}

/// Whether the worker of a job says in Postgres that it lives. Asked when the row is locked, and in a statement of its own,
/// which sees what was committed until then: a worker that says so and then finds its row, as [`Store::held`] does, is
/// sure to keep it.
async fn is_alive(tx: &mut sqlx::PgConnection, job: &Job, now: DateTime<Utc>) -> Result<bool, Error> {
    let sql = "select exists (select from workers where id = $1 and alive_until > $2)";
    Ok(sqlx::query_scalar(sql)
        .bind(job.worker_id)
        .bind(now)
        .fetch_one(tx)
        .await?)
}

/// The events to write for a lost attempt, and the number of the change itself.
fn last_words(
    job: &Job,
    written: u64,
    tail: &[Event],
    gap: bool,
    decision: &Decision,
    now: DateTime<Utc>,
) -> (Vec<Event>, u64) {
    let mut events: Vec<Event> = tail.iter().filter(|event| event.seq > written).cloned().collect();
    // An attempt that printed nothing has its `started` only in its row.
    if written < job.seq
        && events.first().is_none_or(|event| event.seq > job.seq)
        && let (Some(at), Some(worker)) = (job.started_at, job.worker_id)
    {
        events.insert(
            0,
            Event {
                seq: job.seq,
                at,
                attempt: job.attempt,
                body: EventBody::Started { worker },
            },
        );
    }
    let last = events.last().map_or(written, |event| event.seq).max(job.seq);
    let mut next = last + UNWRITTEN_MAX;
    let mut add = |body: EventBody| {
        events.push(Event {
            seq: next,
            at: now,
            attempt: job.attempt,
            body,
        });
        next += 1;
    };
    if gap {
        let reason = "the worker and Redis were lost together".to_owned();
        add(EventBody::ResumeGap {
            from_seq: last + 1,
            to_seq: last + UNWRITTEN_MAX - 1,
            reason,
        });
    }
    if matches!(decision, Decision::GiveBack) {
        add(EventBody::AttemptReset {
            discard_from_seq: job.seq,
        });
        add(EventBody::Queued { position: None });
        next -= 1;
    } else {
        // Just before the end: readers make the start of a silent attempt up where nothing stands there.
        let detail = Some("the worker stopped answering".to_owned());
        add(EventBody::Status {
            phase: "worker_lost".to_owned(),
            detail,
        });
    }
    (events, next)
}

async fn write(
    tx: &mut sqlx::PgConnection,
    job: &Job,
    decision: &Decision,
    seq: u64,
    now: DateTime<Utc>,
) -> Result<Job, Error> {
    let (state, failure) = match decision {
        Decision::Fail(failure) => ("failed", Some(failure)),
        Decision::Cancel => ("cancelled", None),
        _ => ("queued", None),
    };
    let sql = format!(
        "with changed as (update jobs set state = $2, losses = losses + 1, seq = $3, error_code = $4, error_message = $5,
            queued_at = case when $2 = 'queued' then $6 else queued_at end,
            finished_at = case when $2 <> 'queued' then $6 end
         where id = $1 and state = 'running' and attempt = $7 returning {COLUMNS}), queued as ({})
         select * from changed",
        index::enter("changed")
    );
    let changed = sqlx::query(AssertSqlSafe(sql))
        .bind(job.id)
        .bind(state)
        .bind(bigint(seq))
        .bind(failure.map(|failure| failure.code.as_str()))
        .bind(failure.map(|failure| failure.message.as_str()))
        .bind(now)
        .bind(int(job.attempt))
        .fetch_one(&mut *tx)
        .await?;
    let lost = Failure::new(FailureCode::WorkerLost, "the worker stopped answering");
    sqlx::query(
        "insert into attempts (job_id, attempt, worker_id, started_at, finished_at, outcome, error_code, error_message)
         values ($1, $2, $3, $4, $5, 'lost', $6, $7) on conflict do nothing",
    )
    .bind(job.id)
    .bind(int(job.attempt))
    .bind(job.worker_id.unwrap_or(WorkerId(uuid::Uuid::nil())))
    .bind(job.started_at.unwrap_or(now))
    .bind(now)
    .bind(lost.code.as_str())
    .bind(&lost.message)
    .execute(&mut *tx)
    .await?;
    if let (Some(conversation_id), true) = (job.conversation_id, state != "queued") {
        leave_turn(tx, job.id, conversation_id, now).await?;
    }
    row::job(&changed)
}
