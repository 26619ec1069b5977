//! Windows of budgets: what was spent in one before anybody looked at it. From then on [`Store::insert_usage`] charges it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use super::budgets::SubjectBudget;
use super::subjects::of_subject;
use super::{Error, Store};
use crate::ids::TenantId;

/// Within this time after its call a fact is inserted: a writer gives up long before. One that is found in a journal may come
/// later, and is missing when it comes in the moment between the two sums.
const FACT_DELAY_MAX: Duration = Duration::from_hours(1);

/// Longest time in which what was spent before a budget was set is added up.
const RECKONING_MAX: Duration = Duration::from_mins(10);

impl Store {
    /// Reckons what was spent in a window before anybody looked at it, once, however long that takes. Answers false when
    /// somebody else is at it.
    pub(super) async fn reckon(
        &self,
        tenant_id: TenantId,
        of: &SubjectBudget,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let reckoned = tokio::time::timeout(RECKONING_MAX, async {
            let mut tx = self.pool().begin().await?;
            let is_mine: bool = sqlx::query_scalar(
                "select pg_try_advisory_xact_lock(hashtextextended('window:' || $1::text || $2, 0))",
            )
            .bind(tenant_id)
            .bind(of.subject.to_string())
            .fetch_one(&mut *tx)
            .await?;
            if is_mine {
                begin_window(&mut tx, tenant_id, of, now).await?;
                tx.commit().await?;
            }
            Ok(is_mine)
        });
        reckoned
            .await
            .unwrap_or(Err(Error::Unavailable(sqlx::Error::PoolTimedOut)))
    }
}

/// Writes down what was spent in a window so far. Who inserts a fact locks the table of windows for writing before looking,
/// so while it is locked here none is under way: those before are in the sum, those after charge the row. What is older than
/// a fact can be that is still to come, and that may be all that a tenant ever used, is added up before that.
async fn begin_window(
    connection: &mut PgConnection,
    tenant_id: TenantId,
    of: &SubjectBudget,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let (kind, id) = of.subject.parts();
    let began_on = of.budget.window.began_on(now);
    let is_there: bool = sqlx::query_scalar(
        "select exists (select from budgets where tenant_id = $1 and began_on = $2 and subject = $3)",
    )
    .bind(tenant_id)
    .bind(began_on)
    .bind(of.subject.to_string())
    .fetch_one(&mut *connection)
    .await?;
    if is_there {
        return Ok(());
    }
    let facts = of_subject(kind, "$2", "$3::text");
    let sum = "coalesce(sum(cost_usd), 0)::text, coalesce(sum(output_tokens), 0)::bigint";
    let (cost, output): (String, i64) = sqlx::query_as(AssertSqlSafe(format!(
        "select {sum} from usage where {facts} and at < $4"
    )))
    .bind(tenant_id)
    .bind(began_on)
    .bind(&id)
    .bind(now - FACT_DELAY_MAX)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("lock table budgets in share row exclusive mode")
        .execute(&mut *connection)
        .await?;
    let insert = format!(
        "insert into budgets (tenant_id, began_on, subject, cost_usd, output_tokens)
         select $1, $2, $5, $6::text::numeric + coalesce(sum(cost_usd), 0), $7 + coalesce(sum(output_tokens), 0)
         from usage where {facts} and at >= $4"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(tenant_id)
        .bind(began_on)
        .bind(id)
        .bind(now - FACT_DELAY_MAX)
        .bind(of.subject.to_string())
        .bind(cost)
        .bind(output)
        .execute(connection)
        .await?;
    Ok(())
}
