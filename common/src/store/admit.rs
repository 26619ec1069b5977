//! The strategies of concurrency keys: who is refused, and who gives way.
//!
//! They are decided in Postgres in the transaction that accepts the job, under a lock of the key, so that they are right
//! whoever submits at the same time and whatever Redis knows. What counts are the key's open jobs, those that still wait
//! included: an accepted job has its turn. A job whose time has not come yet neither counts nor decides; it does both
//! in the transaction that promotes it. Jobs that a schedule fires, jobs of a group and redriven ones decide when they are
//! inserted; nobody waits for an answer to them, so one that is refused fails.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::{Error, index};
use crate::ids::{JobId, TenantId};
use crate::job::{Concurrency, FailureCode, Job, NewJob, Strategy};

/// What became of the jobs of one submission, where strategies had a say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Those that were refused; all others were inserted.
    pub rejected: Vec<JobId>,
    /// Open jobs that give way to them: asked to stop, which the caller makes known.
    pub superseded: Vec<(TenantId, JobId)>,
}

/// A key of a tenant.
type Key<'a> = (TenantId, &'a str);

fn decides(job: &NewJob) -> Option<&Concurrency> {
    let is_now = job.spec.run_at.is_none_or(|run_at| run_at <= job.created_at);
    job.spec.concurrency.as_ref().filter(|_| is_now)
}

/// Whether any of these jobs has a say over others of its key.
pub(super) fn has_strategies(jobs: &[&NewJob]) -> bool {
    jobs.iter()
        .any(|job| decides(job).is_some_and(|key| key.strategy != Strategy::Queue))
}

/// Locks the keys of these jobs that need it until the transaction ends, and answers which jobs are refused.
pub(super) async fn refuse(tx: &mut PgConnection, jobs: &[&NewJob]) -> Result<Vec<JobId>, Error> {
    // More than the largest limit of those that may be refused need not be counted.
    let mut most: BTreeMap<Key<'_>, u32> = BTreeMap::new();
    for (job, concurrency) in jobs.iter().filter_map(|job| Some((job, decides(job)?))) {
        if concurrency.strategy != Strategy::Queue {
            let most = most.entry((job.tenant_id, &concurrency.key)).or_default();
            *most = (*most).max(concurrency.limit);
        }
    }
    let keys: Vec<Key<'_>> = most.keys().copied().collect();
    lock(tx, &keys).await?;
    let mut open = count(tx, &most).await?;
    let mut rejected = Vec::new();
    for job in jobs {
        let Some(concurrency) = decides(job) else { continue };
        let key = (job.tenant_id, concurrency.key.clone());
        let open = open.entry(key).or_default();
        if concurrency.strategy == Strategy::Reject && *open >= i64::from(concurrency.limit) {
            rejected.push(job.id);
        } else {
            *open += 1;
        }
    }
    Ok(rejected)
}

/// Asks the open jobs of a key to stop that a job with `cancel_running` leaves no place for, the oldest first.
pub(super) async fn supersede(
    tx: &mut PgConnection,
    jobs: &[&NewJob],
    now: DateTime<Utc>,
) -> Result<Vec<(TenantId, JobId)>, Error> {
    let mut newest: BTreeMap<Key<'_>, (u32, Vec<JobId>)> = BTreeMap::new();
    for job in jobs {
        if let Some(concurrency) = decides(job).filter(|key| key.strategy == Strategy::CancelRunning) {
            let (limit, ids) = newest.entry((job.tenant_id, &concurrency.key)).or_default();
            *limit = concurrency.limit;
            ids.push(job.id);
        }
    }
    let mut superseded = Vec::new();
    for (key, (limit, ids)) in newest {
        superseded.extend(supersede_key(tx, key, limit, (&ids, &[]), now).await?);
    }
    Ok(superseded)
}

/// Leaves a key's `limit` newest jobs, of which `newcomers` come first whatever the clocks say that made their ids;
/// `others` neither count nor give way.
async fn supersede_key(
    tx: &mut PgConnection,
    (tenant_id, key): Key<'_>,
    limit: u32,
    (newcomers, others): (&[JobId], &[JobId]),
    now: DateTime<Utc>,
) -> Result<Vec<(TenantId, JobId)>, Error> {
    Ok(sqlx::query_as(
        "update jobs set cancel_requested_at = $5 where cancel_requested_at is null and finished_at is null and id in
            (select id from jobs where tenant_id = $1 and open_key = $2
                and state <> 'scheduled' and id <> all($6) order by (id = any($3)) desc, id desc offset $4)
         returning tenant_id, id",
    )
    .bind(tenant_id)
    .bind(key)
    .bind(newcomers)
    .bind(i64::from(limit))
    .bind(now)
    .bind(others)
    .fetch_all(tx)
    .await?)
}

/// Applies the strategies of jobs that this transaction has inserted, in their order, where nobody waits for an answer:
/// what is refused fails. One that a job waits for does not compete with that one.
pub(super) async fn admit_inserted(
    tx: &mut PgConnection,
    jobs: &[&NewJob],
    now: DateTime<Utc>,
) -> Result<Decided, Error> {
    let newcomer = |job: &&'_ NewJob| {
        Some(Newcomer {
            id: job.id,
            tenant_id: job.tenant_id,
            parent_id: job.links.parent_id,
            concurrency: decides(job)?.clone(),
        })
    };
    admit(tx, jobs.iter().filter_map(newcomer).collect(), now).await
}

/// The same for jobs that this transaction has queued.
pub(super) async fn admit_queued<'a>(
    tx: &mut PgConnection,
    jobs: impl Iterator<Item = &'a Job>,
    now: DateTime<Utc>,
) -> Result<Decided, Error> {
    let newcomer = |job: &Job| {
        Some(Newcomer {
            id: job.id,
            tenant_id: job.tenant_id,
            parent_id: job.parent_id,
            concurrency: job.concurrency.clone()?,
        })
    };
    admit(tx, jobs.filter_map(newcomer).collect(), now).await
}

async fn admit(tx: &mut PgConnection, mut newcomers: Vec<Newcomer>, now: DateTime<Utc>) -> Result<Decided, Error> {
    newcomers.retain(|newcomer| newcomer.concurrency.strategy != Strategy::Queue);
    let mut keys: Vec<Key<'_>> = newcomers.iter().map(Newcomer::key).collect();
    keys.sort_unstable();
    keys.dedup();
    lock(tx, &keys).await?;
    let mut decided = Decided::default();
    for (index, newcomer) in newcomers.iter().enumerate() {
        let later = newcomers[index + 1..].iter().map(|newcomer| newcomer.id);
        let others: Vec<JobId> = later.chain(newcomer.parent_id).collect();
        newcomer.admit(tx, &others, now, &mut decided).await?;
    }
    Ok(decided)
}

/// A job whose row is there already.
struct Newcomer {
    id: JobId,
    tenant_id: TenantId,
    parent_id: Option<JobId>,
    concurrency: Concurrency,
}

impl Newcomer {
    fn key(&self) -> Key<'_> {
        (self.tenant_id, &self.concurrency.key)
    }

    /// Decides under the lock of its key; `others` do not count.
    async fn admit(
        &self,
        tx: &mut PgConnection,
        others: &[JobId],
        now: DateTime<Utc>,
        decided: &mut Decided,
    ) -> Result<(), Error> {
        let limit = self.concurrency.limit;
        if self.concurrency.strategy == Strategy::CancelRunning {
            let gone = supersede_key(tx, self.key(), limit, (&[self.id], others), now).await?;
            decided.superseded.extend(gone);
            return Ok(());
        }
        let open: i64 = sqlx::query_scalar(
            "select count(*) from (select from jobs where tenant_id = $1 and open_key = $2
                and state <> 'scheduled' and id <> $3 and id <> all($4) limit $5) as open",
        )
        .bind(self.tenant_id)
        .bind(&self.concurrency.key)
        .bind(self.id)
        .bind(others)
        .bind(i64::from(limit))
        .fetch_one(&mut *tx)
        .await?;
        if open < i64::from(limit) {
            return Ok(());
        }
        let sql = format!(
            "with failed as (
                update jobs set state = 'failed', finished_at = $2, seq = seq + 1, error_code = $3,
                    error_message = 'another job holds its concurrency key' where id = $1 and state = 'queued'
                returning tenant_id, queue, class, priority, id
             ), left_queue as ({})
             select id from failed",
            index::leave("failed")
        );
        let failed: Option<JobId> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(self.id)
            .bind(now)
            .bind(FailureCode::ConcurrencyLimit.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        decided.rejected.extend(failed);
        Ok(())
    }
}

/// In one order everywhere, or two batches with the same keys would wait for each other.
async fn lock(tx: &mut PgConnection, keys: &[Key<'_>]) -> Result<(), Error> {
    let mut locks: Vec<i64> = keys
        .iter()
        .map(|(tenant_id, key)| {
            let digest = Sha256::new()
                .chain_update(tenant_id.uuid())
                .chain_update(key)
                .finalize();
            i64::from_be_bytes(std::array::from_fn(|index| digest[index]))
        })
        .collect();
    locks.sort_unstable();
    for lock in locks {
        sqlx::query("select pg_advisory_xact_lock($1)")
            .bind(lock)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

/// How many jobs of each key are open, up to so many.
async fn count(
    tx: &mut PgConnection,
    keys: &BTreeMap<Key<'_>, u32>,
) -> Result<HashMap<(TenantId, String), i64>, Error> {
    let tenants: Vec<Uuid> = keys.keys().map(|(tenant_id, _)| tenant_id.uuid()).collect();
    let names: Vec<&str> = keys.keys().map(|(_, key)| *key).collect();
    let most: Vec<i64> = keys.values().copied().map(i64::from).collect();
    let rows: Vec<(TenantId, String, i64)> = sqlx::query_as(
        "select k.tenant_id, k.key, open.jobs
         from unnest($1::uuid[], $2::text[], $3::bigint[]) as k(tenant_id, key, most)
         cross join lateral (
            select count(*) as jobs from (
                select from jobs where jobs.tenant_id = k.tenant_id and jobs.open_key = k.key and jobs.state <> 'scheduled'
                limit k.most
            ) as counted
         ) as open",
    )
    .bind(&tenants)
    .bind(&names)
    .bind(&most)
    .fetch_all(tx)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(tenant, key, open)| ((tenant, key), open))
        .collect())
}
