//! Accepting jobs: one multi-row insert for whatever arrived together.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::admit::{self, Decided};
use super::row::{int, ms};
use super::{Class, Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::{Concurrency, NewJob, Rate};

/// Remembers a request, so that its repetition is answered with the same jobs.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The submitter's key.
    pub key: String,
    /// SHA-256 of method, path and body.
    pub fingerprint: [u8; 32],
}

/// Jobs that are accepted, or refused, together.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Whose they are.
    pub tenant_id: TenantId,
    /// One or more jobs, all of the tenant.
    pub jobs: Vec<NewJob>,
    /// The request's key, if it has one.
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Debug)]
pub enum Accepted {
    /// Its jobs are committed.
    Inserted,
    /// The strategies of concurrency keys had a say: those that are not named as rejected are committed.
    Decided(Decided),
    /// Its key was used before with the same request: these are the first one's jobs.
    Repeated(Vec<JobId>),
    /// Its key was used before with another request.
    KeyReused,
}

impl Store {
    /// Inserts submissions in one transaction. When Postgres refuses the data of one, the others are inserted all the
    /// same: the batch is halved until the bad one stands alone.
    ///
    /// Answers one result for each submission, in order.
    pub async fn insert(&self, submissions: &[Submission]) -> Vec<Result<Accepted, Error>> {
        let mut results: Vec<Option<Result<Accepted, Error>>> = submissions.iter().map(|_| None).collect();
        let mut ranges = vec![(0, submissions.len())];
        while let Some((from, to)) = ranges.pop() {
            if from == to {
                continue;
            }
            match self.insert_together(&submissions[from..to]).await {
                Ok(accepted) => {
                    for (slot, outcome) in results[from..to].iter_mut().zip(accepted) {
                        *slot = Some(Ok(outcome));
                    }
                }
                Err(error) if error.class() == Class::Data && to - from > 1 => {
                    let middle = from.midpoint(to);
                    ranges.extend([(from, middle), (middle, to)]);
                }
                Err(error) => fill(&mut results[from..to], error),
            }
        }
        results
            .into_iter()
            .map(|slot| slot.unwrap_or(Err(Error::Query(sqlx::Error::RowNotFound))))
            .collect()
    }

    async fn insert_together(&self, submissions: &[Submission]) -> Result<Vec<Accepted>, Error> {
        self.within(async {
            let jobs: Vec<&NewJob> = submissions.iter().flat_map(|submission| &submission.jobs).collect();
            let has_strategies = admit::has_strategies(&jobs);
            if !has_strategies && submissions.iter().all(|submission| submission.idempotency.is_none()) {
                insert_jobs(&mut *self.pool().acquire().await?, &jobs).await?;
                return Ok(submissions.iter().map(|_| Accepted::Inserted).collect());
            }
            let mut tx = self.pool().begin().await?;
            let mut accepted: Vec<Accepted> = submissions.iter().map(|_| Accepted::Inserted).collect();
            let mut keyed: Vec<_> = submissions
                .iter()
                .zip(&mut accepted)
                .filter_map(|(submission, outcome)| Some((submission, submission.idempotency.as_ref()?, outcome)))
                .collect();
            // In one order everywhere, or two batches with the same keys would wait for each other.
            keyed.sort_by_key(|(submission, idempotency, _)| (submission.tenant_id, &idempotency.key));
            for (submission, idempotency, outcome) in keyed {
                *outcome = remember(&mut tx, submission, idempotency).await?;
            }
            let jobs: Vec<&NewJob> = submissions
                .iter()
                .zip(&accepted)
                .filter(|(_, outcome)| matches!(outcome, Accepted::Inserted))
                .flat_map(|(submission, _)| &submission.jobs)
                .collect();
            if has_strategies {
                decide(&mut tx, submissions, jobs, &mut accepted).await?;
            } else {
                insert_jobs(&mut tx, &jobs).await?;
            }
            tx.commit().await?;
            Ok(accepted)
        })
        .await
    }
}

/// Inserts what the strategies of concurrency keys let through, and says what they decided.
async fn decide(
    tx: &mut PgConnection,
    submissions: &[Submission],
    mut jobs: Vec<&NewJob>,
    accepted: &mut [Accepted],
) -> Result<(), Error> {
    let rejected = admit::refuse(tx, &jobs).await?;
    jobs.retain(|job| !rejected.contains(&job.id));
    insert_jobs(tx, &jobs).await?;
    let now = jobs.iter().map(|job| job.created_at).max().unwrap_or_default();
    let superseded = admit::supersede(tx, &jobs, now).await?;
    if rejected.is_empty() && superseded.is_empty() {
        return Ok(());
    }
    for (submission, outcome) in submissions.iter().zip(accepted) {
        let mine = submission.jobs.iter().map(|job| job.id);
        let rejected: Vec<JobId> = mine.filter(|id| rejected.contains(id)).collect();
        if !matches!(outcome, Accepted::Inserted) {
            continue;
        }
        // A refused request leaves nothing behind: with the same key it may be made again.
        if let Some(idempotency) = submission
            .idempotency
            .as_ref()
            .filter(|_| rejected.len() == submission.jobs.len())
        {
            forget(tx, submission.tenant_id, idempotency).await?;
        }
        let of_tenant = superseded
            .iter()
            .filter(|(tenant_id, _)| *tenant_id == submission.tenant_id);
        *outcome = Accepted::Decided(Decided {
            rejected,
            superseded: of_tenant.copied().collect(),
        });
    }
    Ok(())
}

async fn forget(tx: &mut PgConnection, tenant_id: TenantId, idempotency: &Idempotency) -> Result<(), Error> {
    sqlx::query("delete from idempotency_keys where tenant_id = $1 and key = $2")
        .bind(tenant_id)
        .bind(&idempotency.key)
        .execute(tx)
        .await?;
    Ok(())
}

/// The first waits for a concurrent holder of the same key: whoever comes second sees the committed first.
pub(super) async fn remember(
    tx: &mut PgConnection,
    submission: &Submission,
    idempotency: &Idempotency,
) -> Result<Accepted, Error> {
    let ids: Vec<Uuid> = submission.jobs.iter().map(|job| job.id.uuid()).collect();
    let at = submission.jobs.first().map(|job| job.created_at);
    let inserted = sqlx::query(
        "insert into idempotency_keys (tenant_id, key, fingerprint, job_ids, created_at) values ($1, $2, $3, $4, $5)
         on conflict do nothing",
    )
    .bind(submission.tenant_id)
    .bind(&idempotency.key)
    .bind(&idempotency.fingerprint[..])
    .bind(&ids)
    .bind(at)
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 1 {
        return Ok(Accepted::Inserted);
    }
    let first = sqlx::query("select fingerprint, job_ids from idempotency_keys where tenant_id = $1 and key = $2")
        .bind(submission.tenant_id)
        .bind(&idempotency.key)
        .fetch_one(&mut *tx)
        .await?;
    if first.try_get::<Vec<u8>, _>("fingerprint")? == idempotency.fingerprint {
        let ids: Vec<Uuid> = first.try_get("job_ids")?;
        Ok(Accepted::Repeated(ids.into_iter().map(JobId).collect()))
    } else {
        Ok(Accepted::KeyReused)
    }
}

fn fill(results: &mut [Option<Result<Accepted, Error>>], error: Error) {
    let mut first = Some(error);
    for slot in results {
        *slot = Some(Err(first
            .take()
            .unwrap_or_else(|| Error::Unavailable(sqlx::Error::PoolTimedOut))));
    }
}

/// One value of a column for each job.
fn column<'a, T: 'a>(jobs: &[&'a NewJob], value: impl Fn(&'a NewJob) -> T) -> Vec<T> {
    jobs.iter().map(|job| value(job)).collect()
}

/// A row for each job, and one in `queued_jobs` for each that is queued.
const INSERT: &str = "with t as materialized (
        select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::smallint[], $8::text[],
            $9::integer[], $10::bigint[], $11::float8[], $12::bigint[], $13::text[], $14::bigint[], $15::timestamptz[],
            $16::timestamptz[], $17::timestamptz[], $18::timestamptz[], $19::bytea[], $20::text[], $21::integer[],
            $22::text[], $23::text[], $24::uuid[], $25::jsonb[], $26::uuid[], $27::integer[], $28::uuid[], $29::uuid[],
            $30::uuid[], $31::uuid[], $32::text[], $33::integer[], $34::bigint[])
        as t(id, tenant_id, kind, queue, class, labels, priority, state, max_attempts, backoff_initial_ms,
            backoff_factor, backoff_max_ms, retry_on, timeout_ms, run_at, due_at, created_at, queued_at, input,
            concurrency_key, concurrency_limit, concurrency_strategy, user_id, api_key_id, metadata, agent_id,
            agent_version, conversation_id, schedule_id, parent_id, redrive_of, rate_key, rate_limit, rate_window_ms)
     ), queued as (
        insert into queued_jobs (tenant_id, queue, class, priority, id)
        select tenant_id, queue, class, priority, id from t where state = 'queued'
     )
     insert into jobs (id, tenant_id, kind, queue, class, labels, priority, state, max_attempts, backoff_initial_ms,
        backoff_factor, backoff_max_ms, retry_on, timeout_ms, run_at, due_at, created_at, queued_at, seq, input,
        concurrency_key, concurrency_limit, concurrency_strategy, user_id, api_key_id, metadata, agent_id,
        agent_version, conversation_id, schedule_id, parent_id, redrive_of, rate_key, rate_limit, rate_window_ms)
     select id, tenant_id, kind, queue, class, string_to_array(labels, ','), priority, state, max_attempts,
        backoff_initial_ms, backoff_factor, backoff_max_ms, string_to_array(retry_on, ','), timeout_ms, run_at,
        due_at, created_at, queued_at, 1, input, concurrency_key, concurrency_limit, concurrency_strategy, user_id,
        api_key_id, metadata, agent_id, agent_version, conversation_id, schedule_id, parent_id, redrive_of,
        rate_key, rate_limit, rate_window_ms
     from t";

/// Inserts jobs on a connection, which may be in a transaction.
pub(super) async fn insert_jobs(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let later = |job: &NewJob| job.spec.run_at.filter(|run_at| *run_at > job.created_at);
    let state = |job: &NewJob| if later(job).is_some() { "scheduled" } else { "queued" };
    let queued = |job: &NewJob| -> Option<DateTime<Utc>> { later(job).is_none().then_some(job.created_at) };
    let limits = |job: &NewJob| -> Option<Concurrency> { job.spec.concurrency.clone() };
    let rate = |job: &NewJob| -> Option<Rate> { job.spec.rate.clone() };
    sqlx::query(INSERT)
        .bind(column(jobs, |job| job.id))
        .bind(column(jobs, |job| job.tenant_id))
        .bind(column(jobs, |job| job.spec.kind.as_str()))
        .bind(column(jobs, |job| job.spec.queue.as_str()))
        .bind(column(jobs, |job| job.class.as_str()))
        .bind(column(jobs, |job| job.spec.labels.join(",")))
        .bind(column(jobs, |job| i16::from(job.spec.priority)))
        .bind(column(jobs, state))
        .bind(column(jobs, |job| int(job.spec.max_attempts)))
        .bind(column(jobs, |job| ms(job.spec.backoff.initial)))
        .bind(column(jobs, |job| job.spec.backoff.factor))
        .bind(column(jobs, |job| ms(job.spec.backoff.max)))
        .bind(column(jobs, |job| job.spec.retry_on.join(",")))
        .bind(column(jobs, |job| ms(job.spec.timeout)))
        .bind(column(jobs, |job| job.spec.run_at))
        .bind(column(jobs, later))
        .bind(column(jobs, |job| job.created_at))
        .bind(column(jobs, queued))
        .bind(column(jobs, |job| job.input.as_slice()))
        .bind(column(jobs, |job| limits(job).map(|c| c.key)))
        .bind(column(jobs, |job| limits(job).map(|c| int(c.limit))))
        .bind(column(jobs, |job| limits(job).map(|c| c.strategy.as_str())))
        .bind(column(jobs, |job| job.spec.user_id.as_deref()))
        .bind(column(jobs, |job| job.api_key_id))
        .bind(column(jobs, |job| Json(&job.spec.metadata)))
        .bind(column(jobs, |job| job.links.agent.map(|(id, _)| id)))
        .bind(column(jobs, |job| job.links.agent.map(|(_, version)| int(version))))
        .bind(column(jobs, |job| job.links.conversation_id))
        .bind(column(jobs, |job| job.links.schedule_id))
        .bind(column(jobs, |job| job.links.parent_id))
        .bind(column(jobs, |job| job.links.redrive_of))
        .bind(column(jobs, |job| rate(job).map(|rate| rate.key)))
        .bind(column(jobs, |job| rate(job).map(|rate| int(rate.limit))))
        .bind(column(jobs, |job| rate(job).map(|rate| ms(rate.window))))
        .execute(connection)
        .await?;
    Ok(())
}
