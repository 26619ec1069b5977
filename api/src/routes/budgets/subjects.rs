//! Budgets that a tenant sets for its agents, conversations, users and models.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use common::store::budgets::SubjectBudget;
use common::store::subjects::Subject;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{BudgetRequest, BudgetView};
use crate::auth::Caller;
use crate::extract::{Params, PathSteps, ValidJson};
use crate::problem::{Document, FieldError, Problem};
use crate::routes::{List, Resource};
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(list)).routes(routes!(get, set, remove))
}

/// A budget, and whose calls it counts.
#[derive(Serialize, ToSchema)]
struct SubjectBudgetView {
    /// `conversation`, `agent`, `user` or `model`.
    kind: &'static str,
    /// An id, the submitter's own name of a user, or `provider/model`.
    id: String,
    #[serde(flatten)]
    budget: BudgetView,
}

/// List the budgets that are set for agents, conversations, users and models.
#[utoipa::path(get, path = "/budgets", tag = "operating",
    responses((status = 200, body = List<SubjectBudgetView>)))]
async fn list(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let set = app.store().subject_budgets(caller.tenant_id(), None).await?;
    Ok(Json(List::whole(views(&app, &caller, &set).await?)).into_response())
}

/// Read a budget and what of it is spent.
#[utoipa::path(get, path = "/budgets/{kind}/{id}", tag = "operating",
    params(("kind" = String, Path, description = "`conversation`, `agent`, `user` or `model`"),
        ("id" = String, Path, description = "Whose; of a model `provider%2Fmodel`")),
    responses(
        (status = 200, body = SubjectBudgetView),
        (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, caller: Caller, steps: PathSteps) -> Result<Response, Problem> {
    let subject = subject(&steps)?;
    let set = app.store().subject_budgets(caller.tenant_id(), Some(&subject)).await?;
    let set = set.into_iter().next().ok_or_else(|| Problem::not_found("budget"))?;
    Ok(Json(view(&app, &caller, &set).await?).into_response())
}

/// Set what calls of models may spend for a conversation, an agent, a user or a model.
///
/// It counts all of the tenant's calls for it, those before it was set too. Workers keep to a change within five seconds.
#[utoipa::path(put, path = "/budgets/{kind}/{id}", tag = "operating", request_body = BudgetRequest,
    params(("kind" = String, Path, description = "`conversation`, `agent`, `user` or `model`"),
        ("id" = String, Path, description = "Whose; of a model `provider%2Fmodel`")),
    responses(
        (status = 200, body = SubjectBudgetView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn set(
    State(app): State<App>,
    caller: Caller,
    steps: PathSteps,
    ValidJson(request): ValidJson<BudgetRequest>,
) -> Result<Response, Problem> {
    let (subject, tenant_id) = (subject(&steps)?, caller.tenant_id());
    let budget = request.checked()?;
    if budget.amounts.is_unlimited() {
        let detail = "is required, or max_output_tokens; DELETE removes a budget";
        return Err(Problem::invalid(vec![FieldError::body("/max_cost_usd", detail)]));
    }
    let exists = match &subject {
        Subject::Conversation(id) => app.store().conversation(tenant_id, *id).await?.is_some(),
        Subject::Agent(id) => app.store().agent(tenant_id, *id).await?.is_some(),
        Subject::Tenant | Subject::User(_) | Subject::Model(_) => true,
    };
    if !exists {
        return Err(Problem::not_found(subject.parts().0));
    }
    app.store()
        .set_subject_budget(tenant_id, &subject, Some(budget))
        .await?;
    let set = SubjectBudget { subject, budget };
    Ok(Json(view(&app, &caller, &set).await?).into_response())
}

/// Remove a budget.
#[utoipa::path(delete, path = "/budgets/{kind}/{id}", tag = "operating",
    params(("kind" = String, Path, description = "`conversation`, `agent`, `user` or `model`"),
        ("id" = String, Path, description = "Whose; of a model `provider%2Fmodel`")),
    responses((status = 204), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn remove(State(app): State<App>, caller: Caller, steps: PathSteps) -> Result<Response, Problem> {
    let subject = subject(&steps)?;
    if app
        .store()
        .set_subject_budget(caller.tenant_id(), &subject, None)
        .await?
    {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Problem::not_found("budget"))
    }
}

fn subject(steps: &PathSteps) -> Result<Subject, Problem> {
    Subject::new(steps.get("kind"), steps.get("id")).ok_or_else(|| Problem::not_found("budget"))
}

async fn view(app: &App, caller: &Caller, set: &SubjectBudget) -> Result<SubjectBudgetView, Problem> {
    let views = views(app, caller, std::slice::from_ref(set)).await?;
    views.into_iter().next().ok_or_else(|| Problem::not_found("budget"))
}

async fn views(app: &App, caller: &Caller, set: &[SubjectBudget]) -> Result<Vec<SubjectBudgetView>, Problem> {
    let budgets: Vec<_> = set.iter().map(|set| (&set.subject, Some(set.budget))).collect();
    let budgets = BudgetView::read(app, caller.tenant_id(), &budgets).await?;
    let views = set.iter().zip(budgets).map(|(set, budget)| {
        let (kind, id) = set.subject.parts();
        SubjectBudgetView { kind, id, budget }
    });
    Ok(views.collect())
}
