//! Who has budgets: tenants, and within them conversations, agents, users and models.

use std::fmt;

use chrono::NaiveDate;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::budgets::{Amounts, SubjectBudget, Window, WindowBudget};
use super::row::bigint;
use super::usage::amount;
use super::{Error, Store};
use crate::ids::{AgentId, ConversationId, TenantId};
use crate::job::Job;
use crate::money::Usd;

/// Whose calls a budget counts. In the order of [`fmt::Display`] budgets are locked, the tenant first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// All of the tenant's.
    Tenant,
    /// Those of a conversation.
    Conversation(ConversationId),
    /// Those of all runs and turns of an agent.
    Agent(AgentId),
    /// Those of the jobs of one of the submitter's own users.
    User(String),
    /// Those of a model, as `provider/model`.
    Model(String),
}

impl Subject {
    /// The subject of this kind and id. `None` when there is no such kind, or the id is not one.
    pub fn new(kind: &str, id: &str) -> Option<Self> {
        Some(match kind {
            "conversation" => Self::Conversation(id.parse().ok()?),
            "agent" => Self::Agent(id.parse().ok()?),
            "user" if !id.is_empty() => Self::User(id.to_owned()),
            "model" if id.contains('/') => Self::Model(id.to_owned()),
            _ => return None,
        })
    }

    /// Its kind and id; both empty for the tenant.
    pub fn parts(&self) -> (&'static str, String) {
        match self {
            Self::Tenant => ("", String::new()),
            Self::Conversation(id) => ("conversation", id.to_string()),
            Self::Agent(id) => ("agent", id.to_string()),
            Self::User(id) => ("user", id.clone()),
            Self::Model(name) => ("model", name.clone()),
        }
    }

    fn read(key: &str) -> Result<Self, Error> {
        let parts = key.split_once(':').and_then(|(kind, id)| Self::new(kind, id));
        parts.ok_or_else(|| Error::Corrupt(format!("a budget of {key:?}")))
    }

    /// Those of a job, without its tenant and its models.
    pub(super) fn of_job(job: &Job) -> impl Iterator<Item = Self> {
        let conversation = job.conversation_id.map(Self::Conversation);
        let agent = job.agent_id.map(Self::Agent);
        let user = job.user_id.clone().map(Self::User);
        [conversation, agent, user].into_iter().flatten()
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, id) = self.parts();
        if kind.is_empty() {
            return Ok(());
        }
        write!(f, "{kind}:{id}")
    }
}

fn subject_budget(row: &PgRow) -> Result<SubjectBudget, Error> {
    Ok(SubjectBudget {
        subject: Subject::read(row.try_get("subject")?)?,
        budget: budget(row)?,
    })
}

fn budget(row: &PgRow) -> Result<WindowBudget, Error> {
    let cost: Option<&str> = row.try_get("cost")?;
    let output: Option<i64> = row.try_get("output")?;
    Ok(WindowBudget {
        amounts: Amounts {
            cost: cost.map(amount).transpose()?,
            output_tokens: output.and_then(|n| u64::try_from(n).ok()),
        },
        window: Window::read(row.try_get("budget_window")?),
    })
}

/// The kinds of subjects; the tenant's has no name.
const KINDS: [&str; 5] = ["", "conversation", "agent", "user", "model"];

const COLUMNS: &str = "subject, cost_usd::text as cost, output_tokens as output, budget_window";

impl Store {
    /// The budgets that a tenant has set, at most 10,000, and one of them when it is asked for.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn subject_budgets(
        &self,
        tenant_id: TenantId,
        only: Option<&Subject>,
    ) -> Result<Vec<SubjectBudget>, Error> {
        let sql = format!(
            "select {COLUMNS} from subject_budgets where tenant_id = $1 and ($2::text is null or subject = $2)
             order by subject limit 10000"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(tenant_id)
            .bind(only.map(ToString::to_string))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(subject_budget).collect()
    }

    /// Whether a tenant has set any.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn has_subject_budgets(&self, tenant_id: TenantId) -> Result<bool, Error> {
        let sql = "select exists (select from subject_budgets where tenant_id = $1)";
        Ok(sqlx::query_scalar(sql).bind(tenant_id).fetch_one(self.pool()).await?)
    }

    /// The budgets that a job's calls may be held against: its own subjects', and those of all models.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn subject_budgets_of(&self, job: &Job) -> Result<Vec<SubjectBudget>, Error> {
        let sql = format!(
            "select {COLUMNS} from subject_budgets
             where tenant_id = $1 and (subject = any($2) or subject like 'model:%')"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(job.tenant_id)
            .bind(
                Subject::of_job(job)
                    .map(|subject| subject.to_string())
                    .collect::<Vec<_>>(),
            )
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(subject_budget).collect()
    }

    /// Sets a subject's budget, or removes it. Answers whether there was one.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn set_subject_budget(
        &self,
        tenant_id: TenantId,
        subject: &Subject,
        budget: Option<WindowBudget>,
    ) -> Result<bool, Error> {
        let Some(budget) = budget.filter(|budget| !budget.amounts.is_unlimited()) else {
            let done = sqlx::query("delete from subject_budgets where tenant_id = $1 and subject = $2")
                .bind(tenant_id)
                .bind(subject.to_string())
                .execute(self.pool())
                .await?;
            return Ok(done.rows_affected() == 1);
        };
        let was_new: bool = sqlx::query_scalar(
            "insert into subject_budgets (tenant_id, subject, cost_usd, output_tokens, budget_window)
             values ($1, $2, $3::text::numeric, $4, $5)
             on conflict (tenant_id, subject) do update set cost_usd = excluded.cost_usd,
                output_tokens = excluded.output_tokens, budget_window = excluded.budget_window
             returning xmax = 0",
        )
        .bind(tenant_id)
        .bind(subject.to_string())
        .bind(budget.amounts.cost.map(|cost| cost.to_string()))
        .bind(budget.amounts.output_tokens.map(bigint))
        .bind(budget.window.as_str())
        .fetch_one(self.pool())
        .await?;
        Ok(!was_new)
    }

    /// The budget of a tenant.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn tenant_budget(&self, id: TenantId) -> Result<Option<WindowBudget>, Error> {
        let row = sqlx::query(
            "select budget_cost_usd::text as cost, budget_output_tokens as output, budget_window from tenants
             where id = $1 and budget_window is not null",
        )
        .bind(id)
        .fetch_optional(self.pool())
        .await?;
        row.as_ref().map(budget).transpose()
    }

    /// Sets the budget of a tenant, or removes it; answers false when there is no such tenant.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn set_tenant_budget(&self, id: TenantId, budget: Option<WindowBudget>) -> Result<bool, Error> {
        let budget = budget.filter(|budget| !budget.amounts.is_unlimited());
        let done = sqlx::query(
            "update tenants set budget_cost_usd = $2::text::numeric, budget_output_tokens = $3, budget_window = $4
             where id = $1",
        )
        .bind(id)
        .bind(
            budget
                .and_then(|budget| budget.amounts.cost)
                .map(|cost| cost.to_string()),
        )
        .bind(budget.and_then(|budget| budget.amounts.output_tokens).map(bigint))
        .bind(budget.map(|budget| budget.window.as_str()))
        .execute(self.pool())
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// What subjects have spent, each in the window that began on a day, as their budgets count; in the order of `windows`.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn spent(&self, tenant_id: TenantId, windows: &[(Subject, NaiveDate)]) -> Result<Vec<(Usd, u64)>, Error> {
        let mut spent = vec![(Usd::ZERO, 0); windows.len()];
        for kind in KINDS {
            let windows = windows.iter().enumerate();
            let (places, began_on, ids) = windows
                .map(|(place, (subject, began_on))| (place, *began_on, subject.parts()))
                .filter(|(.., parts)| parts.0 == kind)
                .map(|(place, began_on, (_, id))| (place, began_on, id))
                .collect::<(Vec<usize>, Vec<NaiveDate>, Vec<String>)>();
            if places.is_empty() {
                continue;
            }
            let sql = format!(
                "select u.cost_usd, u.output_tokens
                 from unnest($2::date[], $3::text[]) with ordinality as w(began_on, id, place)
                 cross join lateral (
                    select coalesce(sum(cost_usd), 0)::text as cost_usd,
                        coalesce(sum(output_tokens), 0)::bigint as output_tokens
                    from usage where {}
                 ) u order by w.place",
                of_subject(kind, "w.began_on", "w.id")
            );
            let rows: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(sql))
                .bind(tenant_id)
                .bind(began_on)
                .bind(ids)
                .fetch_all(self.pool())
                .await?;
            for (place, (cost, output)) in places.into_iter().zip(rows) {
                spent[place] = (amount(&cost)?, u64::try_from(output).unwrap_or(0));
            }
        }
        Ok(spent)
    }
}

/// SQL: the facts that count for a subject of a tenant ($1): those since this day, and of this kind and id. Each kind has a
/// condition of its own, which its index serves.
pub(super) fn of_subject(kind: &str, began_on: &str, id: &str) -> String {
    let is_its = match kind {
        "" => "true".to_owned(),
        "conversation" | "agent" => format!("{kind}_id = {id}::uuid"),
        "user" => format!("user_id = {id}"),
        _ => format!("provider || '/' || model = {id}"),
    };
    format!("tenant_id = $1 and at >= {began_on}::timestamp at time zone 'UTC' and {is_its}")
}

/// Forgets the budget of a conversation that is forgotten.
pub(super) async fn forget(connection: &mut PgConnection, id: ConversationId) -> Result<(), Error> {
    sqlx::query("delete from subject_budgets where subject = $1")
        .bind(Subject::Conversation(id).to_string())
        .execute(connection)
        .await?;
    Ok(())
}
