//! Budgets of tenants, for an admin; those of a tenant's agents, conversations, users and models are in [`subjects`].

mod subjects;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::NaiveDate;
use common::ids::TenantId;
use common::money::Usd;
use common::store::budgets::{Amounts, Window, WindowBudget};
use common::store::subjects::Subject;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::auth::Admin;
use crate::extract::{PathId, ValidJson};
use crate::problem::{Document, FieldError, Problem};
use crate::routes::Resource;
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(get, set)).merge(subjects::routes())
}

/// What calls of models may spend within a window. Without any limit there is no budget.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BudgetRequest {
    /// US dollars, decimal, such as `"25.50"`; `null` is no limit.
    max_cost_usd: Option<String>,
    /// Tokens that models write; `null` is no limit.
    max_output_tokens: Option<u64>,
    /// `day` and `month` are those of UTC.
    window: Window,
}

/// A budget, and what of it is spent.
#[derive(Serialize, ToSchema)]
struct BudgetView {
    max_cost_usd: Option<String>,
    max_output_tokens: Option<u64>,
    window: Option<Window>,
    /// The first day of the window; `1970-01-01` for all time. Without a budget it is this month's.
    began_on: NaiveDate,
    /// US dollars that calls with a known price have cost since then.
    spent_cost_usd: String,
    spent_output_tokens: u64,
}

impl BudgetRequest {
    fn checked(self) -> Result<WindowBudget, Problem> {
        let cost = self.max_cost_usd.as_deref().map(str::parse::<Usd>).transpose();
        let mut errors = Vec::new();
        if cost.is_err() {
            errors.push(FieldError::body(
                "/max_cost_usd",
                "is a decimal text, such as \"25.50\"",
            ));
        }
        if self.max_output_tokens.is_some_and(|n| i64::try_from(n).is_err()) {
            errors.push(FieldError::body("/max_output_tokens", "is too large"));
        }
        match cost {
            Ok(cost) if errors.is_empty() => Ok(WindowBudget {
                amounts: Amounts {
                    cost,
                    output_tokens: self.max_output_tokens,
                },
                window: self.window,
            }),
            _ => Err(Problem::invalid(errors)),
        }
    }
}

/// Read a tenant's budget and what of it is spent.
#[utoipa::path(get, path = "/tenants/{id}/budget", tag = "operating", params(("id" = String, Path, description = "The tenant")),
    responses((status = 200, body = BudgetView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, _admin: Admin, PathId(id): PathId<TenantId>) -> Result<Response, Problem> {
    if app.store().tenant(id).await?.is_none() {
        return Err(Problem::not_found("tenant"));
    }
    Ok(Json(view(&app, id).await?).into_response())
}

/// Set a tenant's budget. Workers keep to a change within five seconds.
#[utoipa::path(put, path = "/tenants/{id}/budget", tag = "operating", request_body = BudgetRequest,
    params(("id" = String, Path, description = "The tenant")),
    responses(
        (status = 200, body = BudgetView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn set(
    State(app): State<App>,
    _admin: Admin,
    PathId(id): PathId<TenantId>,
    ValidJson(request): ValidJson<BudgetRequest>,
) -> Result<Response, Problem> {
    if !app.store().set_tenant_budget(id, Some(request.checked()?)).await? {
        return Err(Problem::not_found("tenant"));
    }
    Ok(Json(view(&app, id).await?).into_response())
}

async fn view(app: &App, id: TenantId) -> Result<BudgetView, Problem> {
    let budget = app.store().tenant_budget(id).await?;
    let views = BudgetView::read(app, id, &[(&Subject::Tenant, budget)]).await?;
    views.into_iter().next().ok_or_else(|| Problem::not_found("budget"))
}

impl BudgetView {
    /// What is spent of each of these budgets, in their order.
    async fn read(
        app: &App,
        tenant_id: TenantId,
        budgets: &[(&Subject, Option<WindowBudget>)],
    ) -> Result<Vec<Self>, Problem> {
        let now = app.clock().now();
        let began_on =
            |budget: &Option<WindowBudget>| budget.map_or(Window::Month, |budget| budget.window).began_on(now);
        let windows = budgets
            .iter()
            .map(|(subject, budget)| ((*subject).clone(), began_on(budget)));
        let windows: Vec<_> = windows.collect();
        let spent = app.store().spent(tenant_id, &windows).await?;
        let views = budgets.iter().zip(windows).zip(spent);
        Ok(views
            .map(|(((_, budget), (_, began_on)), (cost, output_tokens))| {
                let amounts = budget.map(|budget| budget.amounts).unwrap_or_default();
                Self {
                    max_cost_usd: amounts.cost.map(|cost| cost.to_string()),
                    max_output_tokens: amounts.output_tokens,
                    window: budget.map(|budget| budget.window),
                    began_on,
                    spent_cost_usd: cost.to_string(),
                    spent_output_tokens: output_tokens,
                }
            })
            .collect())
    }
}
