//! Acting on every job that matches a filter: one bounded batch a call, so that nobody waits behind a million rows.
//!
//! Both deeds leave a mark on what they acted on (`cancel_requested_at`, `redriven_as`) and leave out what bears it, so a
//! caller repeats the call until a batch comes back short, and repeating it after a crash does nothing twice.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, PgConnection, QueryBuilder};
use uuid::Uuid;

use super::admit::admit_queued;
use super::list::{Filter, Order, Pick};
use super::promote::Requeued;
use super::row::{self, COLUMNS, bigint};
use super::steering::{leave_turn, spoken_to};
use super::{Error, Store, index, wait};
use crate::ids::{ApiKeyId, ConversationId, JobId, TenantId};
use crate::job::{Job, StateName};

/// A job that was cancelled, or asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The job.
    pub job_id: JobId,
    /// Number of the change.
    pub seq: u64,
    /// Whether it has ended by it; otherwise its worker must obey.
    pub ended: bool,
}

/// What one batch of cancelling did.
#[derive(Clone, Debug, Default)]
pub struct StoppedBatch {
    /// The jobs.
    pub stopped: Vec<Stopped>,
    /// Jobs that waited for some of them and are queued now.
    pub woken: Vec<Job>,
    /// Those that were turns of conversations and have ended.
    pub turns: Vec<JobId>,
}

impl Store {
    /// Cancels up to `limit` jobs in `state` that match and were not asked to stop yet. Rows that somebody else is just
    /// changing are left for the next batch.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn cancel_matching(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        state: StateName,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<StoppedBatch, Error> {
        self.within(async {
            let mut query = QueryBuilder::new("with found as (select jobs.id");
            let filter = &of_state(filter, state);
            let pick = Pick {
                columns: "id",
                and: " and cancel_requested_at is null",
                order: Order::Any,
                limit: Some(i64::from(limit)),
                lock: " for update skip locked",
            };
            filter.push_from(&mut query, tenant_id, &pick);
            query.push("), changed as (update jobs set cancel_requested_at = ").push_bind(now);
            if state != StateName::Running {
                query.push(", seq = seq + 1, state = 'cancelled', due_at = null, error_code = null, error_message = null");
                query.push(", finished_at = ").push_bind(now);
            }
            query.push(
                " from found where jobs.id = found.id",
            );
            if let Some(at) = filter.created_before {
                // As in the filter: partitions of days to come need no plan.
                query.push(" and jobs.id < ").push_bind(JobId::first_of(at + TimeDelta::days(1)));
            }
            query.push(
                " returning jobs.id, jobs.seq, jobs.state, jobs.parent_id,
                    jobs.conversation_id, jobs.tenant_id, jobs.queue, jobs.class, jobs.priority
                 ), freed as (
                    update conversations c set active_job_id = null from changed
                    where c.id = changed.conversation_id and c.active_job_id = changed.id and changed.state = 'cancelled'
                 )",
            );
            if state == StateName::Queued {
                query.push(", left_queue as (").push(index::leave("changed")).push(")");
            }
            query.push(" select id, seq, state, parent_id, conversation_id from changed");
            let mut tx = self.pool().begin().await?;
            let rows: Vec<Changed> = query.build_query_as().fetch_all(&mut *tx).await?;
            let batch = stopped(&mut tx, rows, now).await?;
            tx.commit().await?;
            Ok(batch)
        })
        .await
    }

    /// Whether any job in one of `states` matches and was not asked to stop yet. All are looked at in the same moment, and
    /// nobody is waited for: one that goes from one state to another is seen in either.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn is_any_to_cancel(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        states: &[StateName],
    ) -> Result<bool, Error> {
        self.within(async {
            let mut query = QueryBuilder::new("select false");
            let pick = Pick {
                columns: "id",
                and: " and cancel_requested_at is null",
                order: Order::Any,
                limit: None,
                lock: "",
            };
            for state in states {
                query.push(" or exists (select 1");
                of_state(filter, *state).push_from(&mut query, tenant_id, &pick);
                query.push(")");
            }
            Ok(query.build_query_scalar().fetch_one(self.pool()).await?)
        })
        .await
    }

    /// Repeats up to `limit` jobs that ended in `state`, match and were not repeated yet, oldest first. Answers the new
    /// jobs, and what the strategies of their keys decided.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn redrive_matching(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        state: StateName,
        limit: u32,
        by: (ApiKeyId, DateTime<Utc>),
    ) -> Result<Requeued, Error> {
        self.within(async {
            let mut query = QueryBuilder::new("select jobs.id");
            let pick = Pick {
                columns: "id",
                and: " and redriven_as is null",
                order: Order::OldestFirst,
                limit: Some(i64::from(limit)),
                lock: " for update skip locked",
            };
            of_state(filter, state).push_from(&mut query, tenant_id, &pick);
            let mut tx = self.pool().begin().await?;
            let old: Vec<JobId> = query.build_query_scalar().fetch_all(&mut *tx).await?;
            let new = repeat(&mut tx, &old, by).await?;
            tx.commit().await?;
            Ok(new)
        })
        .await
    }

    /// Repeats one job that has ended, also when it was repeated before. No job when it has not ended, or is not the
    /// tenant's.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn redrive(
        &self,
        tenant_id: TenantId,
        id: JobId,
        by: (ApiKeyId, DateTime<Utc>),
    ) -> Result<Requeued, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            let old: Vec<JobId> = sqlx::query_scalar(
                "select id from jobs where id = $1 and tenant_id = $2 and finished_at is not null for update",
            )
            .bind(id)
            .bind(tenant_id)
            .fetch_all(&mut *tx)
            .await?;
            let new = repeat(&mut tx, &old, by).await?;
            tx.commit().await?;
            Ok(new)
        })
        .await
    }

    /// How many jobs match, up to `max`; for a deed that leaves a mark, those that do not bear it.
    ///
    /// # Errors
    /// When Postgres is away, or counting takes too long.
    pub async fn count_matching(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        state: StateName,
        max: u64,
    ) -> Result<u64, Error> {
        self.within(async {
            let mut query = QueryBuilder::new("select count(*) from (select 1");
            let and = if state.is_terminal() {
                " and redriven_as is null"
            } else {
                " and cancel_requested_at is null"
            };
            let pick = Pick {
                columns: "id",
                and,
                order: Order::Any,
                limit: Some(bigint(max)),
                lock: "",
            };
            of_state(filter, state).push_from(&mut query, tenant_id, &pick);
            query.push(") as found");
            let count: i64 = query.build_query_scalar().fetch_one(self.pool()).await?;
            Ok(u64::try_from(count).unwrap_or(0))
        })
        .await
    }
}

/// A row that a batch changed: its id, the number of the change, its state, its parent and its conversation.
pub(super) type Changed = (JobId, i64, String, Option<JobId>, Option<ConversationId>);

/// What follows from jobs that a batch cancelled or asked to stop: what was said to their turns stays, and who waits for them
/// goes on.
pub(super) async fn stopped(
    tx: &mut PgConnection,
    rows: Vec<Changed>,
    now: DateTime<Utc>,
) -> Result<StoppedBatch, Error> {
    let ended = |state: &str| state == StateName::Cancelled.as_str();
    let gone = || rows.iter().filter(|(_, _, state, ..)| ended(state));
    let mut parents: Vec<JobId> = gone().filter_map(|(_, _, _, parent_id, _)| *parent_id).collect();
    let turns: Vec<_> = gone()
        .filter_map(|(id, .., conversation_id)| Some((*id, (*conversation_id)?)))
        .collect();
    let ended_turns = turns.iter().map(|(id, _)| *id).collect();
    leave_turns(tx, turns, now).await?;
    parents.sort_unstable();
    parents.dedup();
    let woken = wait::wake(tx, &parents, now).await?;
    let stopped = rows.into_iter().map(|(job_id, seq, state, ..)| Stopped {
        job_id,
        seq: u64::try_from(seq).unwrap_or(0),
        ended: ended(&state),
    });
    Ok(StoppedBatch {
        stopped: stopped.collect(),
        woken,
        turns: ended_turns,
    })
}

/// Adds to their conversations what was said to turns that have ended. Few batches have any.
async fn leave_turns(
    tx: &mut PgConnection,
    mut turns: Vec<(JobId, ConversationId)>,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let ids: Vec<JobId> = turns.iter().map(|(id, _)| *id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let spoken_to = spoken_to(tx, &ids).await?;
    turns.retain(|(id, _)| spoken_to.contains(id));
    turns.sort_unstable_by_key(|(_, conversation_id)| *conversation_id);
    for (id, conversation_id) in turns {
        leave_turn(tx, id, conversation_id, now).await?;
    }
    Ok(())
}

fn of_state(filter: &Filter, state: StateName) -> Filter {
    Filter {
        state: Some(state),
        ..filter.clone()
    }
}

/// Inserts the repetitions of locked rows and marks these, inputs never leaving Postgres. The strategies of their keys decide
/// in the order of the old ones.
async fn repeat(
    tx: &mut PgConnection,
    old: &[JobId],
    (api_key_id, now): (ApiKeyId, DateTime<Utc>),
) -> Result<Requeued, Error> {
    if old.is_empty() {
        return Ok(Requeued::default());
    }
    let new: Vec<Uuid> = old.iter().map(|_| JobId::new().uuid()).collect();
    let sql = format!(
        "with marked as (
            update jobs set redriven_as = n.new_id from unnest($1::uuid[], $2::uuid[]) as n(old_id, new_id)
            where jobs.id = n.old_id and jobs.id = any($1)
         ), repeated as (
         insert into jobs (id, tenant_id, kind, queue, class, labels, priority, state, max_attempts, backoff_initial_ms,
            backoff_factor, backoff_max_ms, retry_on, timeout_ms, created_at, queued_at, seq, input, concurrency_key,
            concurrency_limit, concurrency_strategy, user_id, api_key_id, metadata, agent_id, agent_version,
            conversation_id, schedule_id, redrive_of, rate_key, rate_limit, rate_window_ms)
         select n.new_id, tenant_id, kind, queue, class, labels, priority, 'queued', max_attempts, backoff_initial_ms,
            backoff_factor, backoff_max_ms, retry_on, timeout_ms, $3, $3, 1, input, concurrency_key,
            concurrency_limit, concurrency_strategy, user_id, $4, metadata, agent_id, agent_version,
            conversation_id, schedule_id, id, rate_key, rate_limit, rate_window_ms
         from jobs join unnest($1::uuid[], $2::uuid[]) as n(old_id, new_id) on jobs.id = n.old_id
         where jobs.id = any($1)
         returning {COLUMNS}
         ), queued as ({enter})
         select * from repeated",
        enter = index::enter("repeated"),
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(old)
        .bind(&new)
        .bind(now)
        .bind(api_key_id)
        .fetch_all(&mut *tx)
        .await?;
    let mut jobs: Vec<Job> = rows.iter().map(row::job).collect::<Result<_, _>>()?;
    jobs.sort_unstable_by_key(|job| job.id);
    let decided = admit_queued(tx, jobs.iter(), now).await?;
    Ok(Requeued { jobs, decided })
}
