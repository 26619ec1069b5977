//! Budgets: what calls of models may still cost. The upper bound of each call is held before it is made, and given back
//! in the statement that writes what it used ([`Store::insert_usage`]).
//!
//! # Invariants
//! - What is spent and what is held are read in one statement, under a lock of the budget: together they never exceed it,
//!   however many calls ask at once.
//! - A hold is a row with an end, so that a call whose worker died holds nothing for ever.

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::row::{bigint, int};
use super::subjects::Subject;
use super::usage::amount;
use super::{Error, Store};
use crate::ids::{JobId, TenantId};
use crate::job::Job;
use crate::money::Usd;

/// How long a hold lasts when nobody settles it: longer than any call.
const HOLD_TTL: Duration = Duration::from_hours(1);

/// How soon a call looks again whether another has reckoned a window that it needs.
const RECKONING_PAUSE: Duration = Duration::from_millis(100);

/// What may be spent; none is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// US dollars.
    pub cost: Option<Usd>,
    /// Tokens that models write.
    pub output_tokens: Option<u64>,
}

impl Amounts {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.cost.is_none() && self.output_tokens.is_none()
    }

    /// What is left of these when so much is gone.
    fn less(self, cost: Usd, output_tokens: u64) -> Self {
        Self {
            cost: self.cost.map(|limit| limit.saturating_sub(cost)),
            output_tokens: self.output_tokens.map(|limit| limit.saturating_sub(output_tokens)),
        }
    }

    /// The smaller of both in each.
    fn min(self, other: Self) -> Self {
        Self {
            cost: self.cost.into_iter().chain(other.cost).min(),
            output_tokens: self.output_tokens.into_iter().chain(other.output_tokens).min(),
        }
    }
}

/// How long a tenant's budget lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Window {
    /// A day of UTC.
    Day,
    /// A month of UTC.
    Month,
    /// For ever.
    Total,
}

impl Window {
    /// Its first day, when it is `now`.
    pub fn began_on(self, now: DateTime<Utc>) -> NaiveDate {
        let today = now.date_naive();
        match self {
            Self::Day => today,
            Self::Month => today.with_day(1).unwrap_or(today),
            Self::Total => NaiveDate::default(),
        }
    }

    pub(super) fn read(text: &str) -> Self {
        match text {
            "day" => Self::Day,
            "month" => Self::Month,
            _ => Self::Total,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }
}

/// What calls may spend within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBudget {
    /// How much.
    pub amounts: Amounts,
    /// Within what time.
    pub window: Window,
}

/// A budget, and whose calls it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectBudget {
    /// Whose.
    pub subject: Subject,
    /// How much.
    pub budget: WindowBudget,
}

/// The upper bound of a call about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    /// Names it.
    pub id: Uuid,
    /// What it costs at most.
    pub cost: Usd,
    /// What it writes at most, tokens.
    pub output_tokens: u64,
}

/// The budgets that a call is held against.
#[derive(Clone, Debug, Default)]
pub struct Budgets {
    /// Of its job.
    pub job: Amounts,
    /// Of its tenant, and of what else it counts for; each subject once.
    pub subjects: Vec<SubjectBudget>,
}

impl Budgets {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.job.is_unlimited() && self.subjects.is_empty()
    }

    /// Those that count calls of a model, as `provider/model`.
    #[must_use]
    pub fn for_model(&self, name: &str) -> Self {
        let counts = |budget: &&SubjectBudget| match &budget.subject {
            Subject::Model(model) => model == name,
            Subject::Tenant | Subject::Conversation(_) | Subject::Agent(_) | Subject::User(_) => true,
        };
        Self {
            job: self.job,
            subjects: self.subjects.iter().filter(counts).cloned().collect(),
        }
    }
}

/// What came of trying to hold.
enum Tried<'b> {
    /// It is held.
    Held(Hold),
    /// Only so much is left.
    Left(Amounts),
    /// Nobody has looked at the window of this budget yet.
    Unreckoned(&'b SubjectBudget),
}

impl Store {
    /// Holds a call's upper bound against its budgets. `fit` is told what is left and answers the hold that fits in it, or
    /// `None` when none does; then nothing is held and what is left is the answer.
    ///
    /// # Errors
    /// When Postgres is away: then nothing is held, or ends by its time.
    pub async fn hold_budget(
        &self,
        job: &Job,
        budgets: &Budgets,
        now: DateTime<Utc>,
        fit: impl Fn(Amounts) -> Option<Hold> + Send + Sync,
    ) -> Result<Result<Hold, Amounts>, Error> {
        loop {
            match self.try_hold(job, budgets, now, &fit).await? {
                Tried::Held(hold) => return Ok(Ok(hold)),
                Tried::Left(left) => return Ok(Err(left)),
                Tried::Unreckoned(of) => {
                    if !self.reckon(job.tenant_id, of, now).await? {
                        tokio::time::sleep(RECKONING_PAUSE).await;
                    }
                }
            }
        }
    }

    async fn try_hold<'b>(
        &self,
        job: &Job,
        budgets: &'b Budgets,
        now: DateTime<Utc>,
        fit: &(impl Fn(Amounts) -> Option<Hold> + Send + Sync),
    ) -> Result<Tried<'b>, Error> {
        self.within(async {
            let mut tx = self.pool().begin().await?;
            // A hold that is lost with Postgres's own crash is of a call that ends with this process's connection.
            sqlx::query("set local synchronous_commit = off")
                .execute(&mut *tx)
                .await?;
            let mut left = Amounts::default();
            let mut subjects: Vec<(String, &SubjectBudget)> =
                budgets.subjects.iter().map(|of| (of.subject.to_string(), of)).collect();
            // Locks are taken in the same order everywhere.
            subjects.sort_by(|a, b| a.0.cmp(&b.0));
            for (key, of) in &subjects {
                match left_of(&mut tx, (job.tenant_id, key, of), now).await? {
                    Some(of_it) => left = left.min(of_it),
                    None => return Ok(Tried::Unreckoned(of)),
                }
            }
            let keys: Vec<&String> = subjects.iter().map(|(key, _)| key).filter(|key| !key.is_empty()).collect();
            if !budgets.job.is_unlimited() {
                left = left.min(left_of_job(&mut tx, job, budgets.job, now).await?);
            }
            let Some(hold) = fit(left) else {
                return Ok(Tried::Left(left));
            };
            let expires_at = now + HOLD_TTL;
            sqlx::query(
                "insert into budget_holds (id, tenant_id, job_id, attempt, cost_usd, output_tokens, expires_at, subjects)
                 values ($1, $2, $3, $4, $5::text::numeric, $6, $7, $8)",
            )
            .bind(hold.id)
            .bind(job.tenant_id)
            .bind(job.id)
            .bind(int(job.attempt))
            .bind(hold.cost.to_string())
            .bind(bigint(hold.output_tokens))
            .bind(expires_at)
            .bind(keys)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(Tried::Held(hold))
        })
        .await
    }

    /// Gives a hold back whose call used nothing.
    ///
    /// # Errors
    /// When Postgres is away: it ends by its time.
    pub async fn release_budget(&self, id: Uuid) -> Result<(), Error> {
        sqlx::query("delete from budget_holds where id = $1")
            .bind(id)
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Deletes up to `limit` holds whose time is over; answers how many.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn delete_budget_holds(&self, now: DateTime<Utc>, limit: u32) -> Result<u64, Error> {
        let done = sqlx::query(
            "delete from budget_holds where id in (select id from budget_holds where expires_at < $1 limit $2)",
        )
        .bind(now)
        .bind(i64::from(limit))
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected())
    }
}

async fn lock(connection: &mut PgConnection, of: Uuid, key: &str) -> Result<(), Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('budget:' || $1::text || $2, 0))")
        .bind(of)
        .bind(key)
        .execute(connection)
        .await?;
    Ok(())
}

/// What is left of a job's budget. What an earlier attempt held is not counted: its worker is gone, and what it used, if
/// anybody knows, is a fact by now.
async fn left_of_job(
    connection: &mut PgConnection,
    job: &Job,
    amounts: Amounts,
    now: DateTime<Utc>,
) -> Result<Amounts, Error> {
    let JobId(id) = job.id;
    lock(&mut *connection, id, "").await?;
    let (cost, output): (String, i64) = sqlx::query_as(
        "select sum(cost_usd)::text, sum(output_tokens)::bigint from (
            select 0::numeric as cost_usd, 0::bigint as output_tokens
            union all select coalesce(cost_usd, 0), output_tokens from usage where job_id = $1
            union all select cost_usd, output_tokens from budget_holds
            where job_id = $1 and attempt >= $2 and expires_at > $3
         ) as all_of_it",
    )
    .bind(id)
    .bind(int(job.attempt))
    .bind(now)
    .fetch_one(connection)
    .await?;
    Ok(amounts.less(amount(&cost)?, u64::try_from(output).unwrap_or(0)))
}

/// What is left of a budget; none when nobody has looked at its window yet.
async fn left_of(
    connection: &mut PgConnection,
    (tenant_id, key, of): (TenantId, &str, &SubjectBudget),
    now: DateTime<Utc>,
) -> Result<Option<Amounts>, Error> {
    lock(&mut *connection, tenant_id.uuid(), key).await?;
    // What is spent and what is held in one statement.
    let gone: Option<(String, i64)> = sqlx::query_as(
        "select (b.cost_usd + h.cost_usd)::text, (b.output_tokens + h.output_tokens)::bigint
         from budgets b, (
            select coalesce(sum(cost_usd), 0) as cost_usd, coalesce(sum(output_tokens), 0) as output_tokens
            from budget_holds where tenant_id = $1 and expires_at > $3 and ($4 = '' or $4 = any(subjects))
         ) h where b.tenant_id = $1 and b.began_on = $2 and b.subject = $4",
    )
    .bind(tenant_id)
    .bind(of.budget.window.began_on(now))
    .bind(now)
    .bind(key)
    .fetch_optional(connection)
    .await?;
    let Some((cost, output)) = gone else { return Ok(None) };
    let (cost, output) = (amount(&cost)?, u64::try_from(output).unwrap_or(0));
    Ok(Some(of.budget.amounts.less(cost, output)))
}
