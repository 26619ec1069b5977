//! Accepting jobs: one multi-row insert for whatever arrived together.

mod statement;

use sqlx::PgConnection;

use super::admit::{self, Decided};
use super::idempotency::{Idempotency, forget, remember};
use super::{Class, Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::NewJob;

pub(super) use statement::{OF_JOBS, insert_if, insert_jobs, statement_if};

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
    /// Its key was used before with the same request: these are the first one's jobs, in their places, with a gap where one
    /// was refused.
    Repeated(Vec<Option<JobId>>),
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
            let mut outcome = self.insert_together(&submissions[from..to]).await;
            if outcome.as_ref().is_err_and(Error::is_deadlock) {
                outcome = self.insert_together(&submissions[from..to]).await;
            }
            match outcome {
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
                let mut lent = self.inserting().lend().await?;
                let outcome = insert_jobs(&mut lent.connection, &jobs).await;
                lent.done(outcome)?;
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
                let jobs: Vec<&NewJob> = submission.jobs.iter().collect();
                *outcome = remember(&mut tx, &jobs, idempotency).await?;
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
        // A repetition of a request of this batch is decided as that one is.
        let is_refused =
            matches!(outcome, Accepted::Repeated(first) if first.iter().flatten().all(|id| rejected.contains(id)));
        let rejected: Vec<JobId> = mine.filter(|id| is_refused || rejected.contains(id)).collect();
        if !is_refused && !matches!(outcome, Accepted::Inserted) {
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

fn fill(results: &mut [Option<Result<Accepted, Error>>], error: Error) {
    let mut first = Some(error);
    for slot in results {
        *slot = Some(Err(first
            .take()
            .unwrap_or_else(|| Error::Unavailable(sqlx::Error::PoolTimedOut))));
    }
}
