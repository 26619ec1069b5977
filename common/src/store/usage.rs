//! Usage: one row for each call of a model. Facts: inserted once, from any attempt that existed, never changed.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::budgets::Window;
use super::row::{bigint, int};
use super::subjects::Subject;
use super::{Error, Store};
use crate::ids::{AgentId, ConversationId, JobId, TenantId};
use crate::job::Job;
use crate::message::Usage;
use crate::money::Usd;

/// What one call used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_field_names,
    reason = "the number of a call is called call everywhere"
)]
pub struct Call {
    /// Number of the call in its attempt, from 0.
    pub call: u32,
    /// Who answered.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// Its tokens.
    pub usage: Usage,
    /// What it cost; none when no price is known.
    pub cost: Option<Usd>,
    /// The price that it was reckoned with, JSON.
    pub price: Option<String>,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// What was held of budgets for it.
    pub hold: Option<Uuid>,
}

impl Call {
    /// Everybody whose budget counts it, and the first days of the windows that it lies in. Who has a budget is no matter:
    /// it may have been set while the call was under way, or be set again later.
    fn counts_for(&self, job: &Job) -> (Vec<String>, Vec<NaiveDate>) {
        let model = Subject::Model(format!("{}/{}", self.provider, self.model));
        let subjects = Subject::of_job(job).chain([Subject::Tenant, model]);
        let windows = [Window::Day, Window::Month, Window::Total];
        (
            subjects.map(|subject| subject.to_string()).collect(),
            windows.map(|window| window.began_on(self.at)).into(),
        )
    }
}

/// Calls added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many.
    pub calls: u64,
    /// Those of them whose price is not known: the cost is without them.
    pub unpriced_calls: u64,
    /// Those of them with a number that is our estimate.
    pub estimated_calls: u64,
    /// All tokens of requests.
    pub input_tokens: u64,
    /// Of those, read from a provider's cache.
    pub cached_input_tokens: u64,
    /// Of those, written to a provider's cache.
    pub cache_write_tokens: u64,
    /// All tokens of answers.
    pub output_tokens: u64,
    /// Of those, reasoning.
    pub reasoning_tokens: u64,
    /// What those with a price cost.
    pub cost: Usd,
}

/// What usage is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The tenant.
    Tenant,
    /// The submitter's own user.
    User,
    /// The agent.
    Agent,
    /// The conversation.
    Conversation,
    /// The job.
    Job,
    /// The model, as `provider/model`.
    Model,
    /// The day, UTC.
    Day,
}

impl By {
    fn column(self) -> &'static str {
        match self {
            Self::Tenant => "tenant_id::text",
            Self::User => "user_id",
            Self::Agent => "agent_id::text",
            Self::Conversation => "conversation_id::text",
            Self::Job => "job_id::text",
            Self::Model => "provider || '/' || model",
            Self::Day => "to_char(at at time zone 'UTC', 'YYYY-MM-DD')",
        }
    }
}

const SUMS: &str = "count(*) as calls, count(*) filter (where cost_usd is null) as unpriced,
    count(*) filter (where estimated) as estimated, coalesce(sum(input_tokens), 0)::bigint as input,
    coalesce(sum(cache_read_tokens), 0)::bigint as cached, coalesce(sum(cache_write_tokens), 0)::bigint as written,
    coalesce(sum(output_tokens), 0)::bigint as output, coalesce(sum(reasoning_tokens), 0)::bigint as reasoning,
    coalesce(sum(cost_usd), 0)::text as cost";

fn totals(row: &PgRow) -> Result<Totals, Error> {
    let count = |column: &str| -> Result<u64, Error> { Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0)) };
    let cost: &str = row.try_get("cost")?;
    Ok(Totals {
        calls: count("calls")?,
        unpriced_calls: count("unpriced")?,
        estimated_calls: count("estimated")?,
        input_tokens: count("input")?,
        cached_input_tokens: count("cached")?,
        cache_write_tokens: count("written")?,
        output_tokens: count("output")?,
        reasoning_tokens: count("reasoning")?,
        cost: amount(cost)?,
    })
}

pub(super) fn amount(text: &str) -> Result<Usd, Error> {
    text.parse()
        .map_err(|error: crate::money::NoAmount| Error::Corrupt(error.to_string()))
}

impl Store {
    /// Writes down a call, gives back what was held for it, and charges its budgets, all or nothing. Repeating it
    /// does nothing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn insert_usage(&self, job: &Job, call: &Call) -> Result<(), Error> {
        let (subjects, windows) = call.counts_for(job);
        let cache_write = call
            .usage
            .cache_write_short_tokens
            .saturating_add(call.usage.cache_write_long_tokens);
        let query = sqlx::query(
            "with gone as (delete from budget_holds where id = $19), fact as (
                insert into usage (job_id, attempt, call, tenant_id, user_id, agent_id, conversation_id, provider, model,
                    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cache_write_long_tokens,
                    reasoning_tokens, estimated, at, cost_usd, price)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18::text::numeric,
                    $20::text::json)
                on conflict do nothing returning tenant_id, coalesce(cost_usd, 0) as cost_usd, output_tokens
             )
             -- A window that nobody has looked at has no row, and is reckoned from the facts when somebody does. Rows are
             -- locked in order, so that two calls never wait for each other.
             , charged as materialized (
                select subject, began_on from budgets
                where tenant_id = $4 and subject = any($21) and began_on = any($22)
                order by subject, began_on for update
             )
             update budgets set cost_usd = budgets.cost_usd + fact.cost_usd,
                output_tokens = budgets.output_tokens + fact.output_tokens
             from fact, charged where budgets.tenant_id = fact.tenant_id and budgets.subject = charged.subject
                and budgets.began_on = charged.began_on",
        )
        .bind(job.id)
        .bind(int(job.attempt))
        .bind(int(call.call))
        .bind(job.tenant_id)
        .bind(&job.user_id)
        .bind(job.agent_id)
        .bind(job.conversation_id)
        .bind(&call.provider)
        .bind(&call.model)
        .bind(bigint(call.usage.input_tokens))
        .bind(bigint(call.usage.output_tokens))
        .bind(bigint(call.usage.cached_input_tokens))
        .bind(bigint(cache_write))
        .bind(bigint(call.usage.cache_write_long_tokens))
        .bind(bigint(call.usage.reasoning_tokens))
        .bind(call.usage.estimated)
        .bind(call.at)
        .bind(call.cost.map(|cost| cost.to_string()))
        .bind(call.hold)
        .bind(&call.price)
        .bind(subjects)
        .bind(windows);
        let done = self.on(self.talking(), async |connection| query.execute(connection).await);
        done.await?;
        Ok(())
    }

    /// The calls of a job that are written down, each as its attempt and its number in that.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn metered_calls(&self, job_id: JobId) -> Result<HashSet<(u32, u32)>, Error> {
        let calls: Vec<(i32, i32)> = sqlx::query_as("select attempt, call from usage where job_id = $1")
            .bind(job_id)
            .fetch_all(self.pool())
            .await?;
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        Ok(calls
            .into_iter()
            .map(|(attempt, call)| (number(attempt), number(call)))
            .collect())
    }

    /// What calls used from `from` until before `to`, added up, largest cost first, at most 10,000 groups: of one tenant,
    /// or of all. Days are in their order. What has no user or agent has no key.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn usage_by(
        &self,
        tenant_id: Option<TenantId>,
        (from, to): (DateTime<Utc>, DateTime<Utc>),
        by: By,
    ) -> Result<Vec<(Option<String>, Totals)>, Error> {
        let order = if by == By::Day {
            "1"
        } else {
            "sum(cost_usd) desc nulls last, 1"
        };
        let sql = format!(
            "select {} as key, {SUMS} from usage
             where at >= $1 and at < $2 and ($3::uuid is null or tenant_id = $3)
             group by 1 order by {order} limit 10000",
            by.column()
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(from)
            .bind(to)
            .bind(tenant_id)
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, totals(row)?))).collect()
    }

    /// What the calls of jobs used, those of every attempt; jobs without calls are missing.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn usage_of_jobs(&self, jobs: &[JobId]) -> Result<HashMap<JobId, Totals>, Error> {
        let ids: Vec<Uuid> = jobs.iter().map(|id| id.uuid()).collect();
        let sql = format!("select job_id, {SUMS} from usage where job_id = any($1) group by job_id");
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(ids).fetch_all(self.pool()).await?;
        rows.iter()
            .map(|row| Ok((row.try_get("job_id")?, totals(row)?)))
            .collect()
    }

    /// What the calls of a conversation used.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn usage_of_conversation(&self, id: ConversationId) -> Result<Totals, Error> {
        let sql = format!("select {SUMS} from usage where conversation_id = $1");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_one(self.pool()).await?;
        totals(&row)
    }

    /// What the calls of an agent used.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn usage_of_agent(&self, id: AgentId) -> Result<Totals, Error> {
        let sql = format!("select {SUMS} from usage where agent_id = $1");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(id).fetch_one(self.pool()).await?;
        totals(&row)
    }

    /// How many runs and turns of an agent there are, and how many of them failed, as far as their rows are kept.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn runs_of_agent(&self, tenant_id: TenantId, id: AgentId) -> Result<(u64, u64), Error> {
        let (runs, failures): (i64, i64) = sqlx::query_as(
            "select count(*), count(*) filter (where state = 'failed') from jobs where tenant_id = $1 and agent_id = $2",
        )
        .bind(tenant_id)
        .bind(id)
        .fetch_one(self.pool())
        .await?;
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok((count(runs), count(failures)))
    }
}
