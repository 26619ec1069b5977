//! Usage: what calls of models used and cost.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
use common::store::keys::Role;
use common::store::usage::{By, Totals};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{List, Resource};
use crate::auth::Caller;
use crate::extract::Params;
use crate::problem::{Document, Problem};
use crate::state::App;

/// Days that are added up when no time is given.
const DAYS: u64 = 30;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(usage))
}

/// Calls of models, added up.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = UsageTotals)]
pub(super) struct TotalsView {
    /// Calls that were answered, at least in part.
    calls: u64,
    /// Those of them whose price is not known: `cost_usd` is without them.
    unpriced_calls: u64,
    /// Those of them with an estimated number, because the provider did not report it.
    estimated_calls: u64,
    /// All tokens of requests.
    input_tokens: u64,
    /// Of those, read from a provider's cache.
    cached_input_tokens: u64,
    /// Of those, written to a provider's cache.
    cache_write_tokens: u64,
    /// All tokens of answers.
    output_tokens: u64,
    /// Of those, reasoning.
    reasoning_tokens: u64,
    /// US dollars, decimal.
    cost_usd: String,
}

impl From<Totals> for TotalsView {
    fn from(totals: Totals) -> Self {
        let Totals {
            calls,
            unpriced_calls,
            estimated_calls,
            input_tokens,
            cached_input_tokens,
            cache_write_tokens,
            output_tokens,
            reasoning_tokens,
            cost,
        } = totals;
        Self {
            calls,
            unpriced_calls,
            estimated_calls,
            input_tokens,
            cached_input_tokens,
            cache_write_tokens,
            output_tokens,
            reasoning_tokens,
            cost_usd: cost.to_string(),
        }
    }
}

/// One group of calls.
#[derive(Serialize, ToSchema)]
struct UsageView {
    /// What they have in common: an id, a user, a model as `provider/model` or a day; `null` where there is none.
    key: Option<String>,
    #[serde(flatten)]
    totals: TotalsView,
}

/// Add up what calls of models used.
///
/// Times are RFC 3339 or days of UTC; `to` is not included. Without them it is the last 30 days. Days come in their order,
/// other groups by cost; at most 10,000 of them. An admin key sees all tenants with `by=tenant`.
#[utoipa::path(get, path = "/usage", tag = "operating",
    params(("from" = Option<String>, Query, description = "First moment or day"),
        ("to" = Option<String>, Query, description = "The moment or day after the last"),
        ("by" = Option<String>, Query, description = "`tenant`, `user`, `agent`, `conversation`, `job`, `model` or `day`; `day`")),
    responses(
        (status = 200, body = List<UsageView>),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn usage(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let now = app.clock().now();
    let a_time = "a time such as 2026-11-21T00:00:00Z, or a day such as 2026-11-21";
    let from = params.read_as("from", a_time, time);
    let to = params.read_as("to", a_time, time);
    let by = params.read_as("by", "tenant, user, agent, conversation, job, model or day", by);
    params.finish()?;
    let (by, to) = (by.unwrap_or(By::Day), to.unwrap_or(now));
    let from = from.unwrap_or_else(|| to.checked_sub_days(Days::new(DAYS)).unwrap_or(to));
    let sees_all = by == By::Tenant && caller.role == Role::Admin;
    let tenant = (!sees_all).then(|| caller.tenant_id());
    let groups = app.store().usage_by(tenant, (from, to), by).await?;
    let view = |(key, totals): (Option<String>, Totals)| UsageView {
        key,
        totals: totals.into(),
    };
    Ok(Json(List::whole(groups.into_iter().map(view).collect())).into_response())
}

fn time(text: &str) -> Option<DateTime<Utc>> {
    let moment = DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    let day = || Some(text.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?.and_utc());
    // What Postgres cannot hold is no time either.
    moment.or_else(day).filter(|time| (0..=9999).contains(&time.year()))
}

fn by(text: &str) -> Option<By> {
    Some(match text {
        "tenant" => By::Tenant,
        "user" => By::User,
        "agent" => By::Agent,
        "conversation" => By::Conversation,
        "job" => By::Job,
        "model" => By::Model,
        "day" => By::Day,
        _ => return None,
    })
}
