//! Tenants, for an admin.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::TenantId;
use common::job::limit::Subject;
use common::store::tenants::{Tenant, TenantPatch};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::limits::{self, RateView};
use super::{List, Resource, created};
use crate::auth::Admin;
use crate::extract::{Params, PathId, ValidJson};
use crate::job::is_short_text;
use crate::problem::{Code, Document, FieldError, Problem};
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(create, list))
        .routes(routes!(get, update))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

/// An isolated customer.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
struct TenantView {
    id: Uuid,
    name: String,
    /// Its share of the workers relative to other tenants.
    weight: u32,
    /// The highest level that its jobs may ask for.
    priority_max: u8,
    /// Jobs that may run at once; `null` is no limit.
    max_running: Option<u32>,
    /// Requests a second; `null` is the operator's default.
    rate: Option<u32>,
    /// Jobs that may start within a window; `null` is no limit.
    run_rate: Option<RateView>,
    /// Since when nothing of it is given to workers.
    paused_at: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
}

impl From<Tenant> for TenantView {
    fn from(tenant: Tenant) -> Self {
        let Tenant {
            id,
            name,
            weight,
            priority_max,
            max_running,
            rate,
            run_rate,
            paused_at,
            created_at,
        } = tenant;
        Self {
            id: id.into(),
            name,
            weight,
            priority_max,
            max_running,
            rate,
            run_rate: run_rate.map(RateView::new),
            paused_at,
            created_at,
        }
    }
}

/// What a tenant is made of. In a change, what is absent stays.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::option_option, reason = "absent and null mean different things in a patch")]
struct TenantRequest {
    /// 1 to 200 characters, unique. Required for a new one.
    name: Option<String>,
    /// 1 to 1000; 1.
    weight: Option<u32>,
    /// 0 to 9; 9.
    priority_max: Option<u8>,
    /// At least 1; `null` is no limit.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    max_running: Option<Option<u32>>,
    /// At least 1; `null` is the operator's default.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    rate: Option<Option<u32>>,
    /// Jobs that may start within a window; `null` is no limit.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<RateView>)]
    run_rate: Option<Option<RateView>>,
}

/// Tells `null` from a field that is absent.
#[expect(clippy::option_option, reason = "absent and null mean different things in a patch")]
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl TenantRequest {
    fn checked(self) -> Result<TenantPatch, Problem> {
        let limit = |value: Option<Option<u32>>| value.flatten().is_some_and(|n| n == 0 || n > i32::MAX.unsigned_abs());
        let faults = [
            (
                "/name",
                self.name.as_deref().is_some_and(|name| !is_short_text(name)),
                "is 1 to 200 characters without NUL",
            ),
            (
                "/weight",
                self.weight.is_some_and(|weight| !(1..=1000).contains(&weight)),
                "is between 1 and 1000",
            ),
            (
                "/priority_max",
                self.priority_max.is_some_and(|level| level > 9),
                "is between 0 and 9",
            ),
            (
                "/max_running",
                limit(self.max_running),
                "is between 1 and 2147483647, or null",
            ),
            ("/rate", limit(self.rate), "is between 1 and 2147483647, or null"),
        ];
        let mut errors: Vec<FieldError> = faults
            .into_iter()
            .filter(|fault| fault.1)
            .map(|(at, _, what)| FieldError::body(at, what))
            .collect();
        let run_rate = self
            .run_rate
            .as_ref()
            .map(|rate| rate.as_ref().map(|rate| rate.checked("/run_rate")).transpose())
            .transpose()
            .unwrap_or_else(|faults| {
                errors.extend(faults);
                None
            });
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        let Self {
            name,
            weight,
            priority_max,
            max_running,
            rate,
            run_rate: _,
        } = self;
        Ok(TenantPatch {
            name,
            weight,
            priority_max,
            max_running,
            rate,
            run_rate,
        })
    }
}

fn taken_or(error: common::store::Error) -> Problem {
    if error.is_conflict("tenants_name_key") {
        return Problem::new(Code::Conflict, "a tenant has this name already")
            .with_errors(vec![FieldError::body("/name", "is taken")]);
    }
    error.into()
}

/// Tells the queue, which may be away: the redispatch duty sets weights and limits again.
async fn tell(app: &App, tenant: &Tenant) {
    if let Err(error) = app.queue().set_weight(tenant.id, tenant.weight).await {
        tracing::debug!(%error, "redis does not know of a weight yet");
    }
    limits::tell(app, &Subject::Tenant(tenant.id), &tenant.limit()).await;
}

/// Make a tenant.
#[utoipa::path(post, path = "/tenants", tag = "operating", request_body = TenantRequest,
    responses(
        (status = 201, body = TenantView),
        (status = 403, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json")))]
async fn create(
    State(app): State<App>,
    _admin: Admin,
    ValidJson(request): ValidJson<TenantRequest>,
) -> Result<Response, Problem> {
    let patch = request.checked()?;
    let tenant = Tenant {
        id: TenantId::new(),
        name: patch.name.ok_or_else(|| Problem::field("/name", "is required"))?,
        weight: patch.weight.unwrap_or(1),
        priority_max: patch.priority_max.unwrap_or(9),
        max_running: patch.max_running.flatten(),
        rate: patch.rate.flatten(),
        run_rate: patch.run_rate.flatten(),
        paused_at: None,
        created_at: app.clock().now(),
    };
    app.store().insert_tenant(&tenant).await.map_err(taken_or)?;
    tell(&app, &tenant).await;
    Ok(created(&format!("/tenants/{}", tenant.id), &TenantView::from(tenant)))
}

/// List tenants, newest first.
#[utoipa::path(get, path = "/tenants", tag = "operating",
    params(("limit" = Option<u32>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<TenantView>)))]
async fn list(State(app): State<App>, _admin: Admin, mut params: Params) -> Result<Response, Problem> {
    let (limit, before) = (params.limit(), params.cursor::<TenantId>());
    params.finish()?;
    let tenants = app.store().tenants(before, limit + 1).await?;
    Ok(Json(List::page(tenants, limit, |tenant| tenant.id, TenantView::from)).into_response())
}

/// Read a tenant.
#[utoipa::path(get, path = "/tenants/{id}", tag = "operating", params(("id" = String, Path, description = "The tenant")),
    responses((status = 200, body = TenantView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn get(State(app): State<App>, _admin: Admin, PathId(id): PathId<TenantId>) -> Result<Response, Problem> {
    let tenant = app
        .store()
        .tenant(id)
        .await?
        .ok_or_else(|| Problem::not_found("tenant"))?;
    Ok(Json(TenantView::from(tenant)).into_response())
}

/// Change a tenant.
#[utoipa::path(patch, path = "/tenants/{id}", tag = "operating", request_body = TenantRequest,
    params(("id" = String, Path, description = "The tenant")),
    responses((status = 200, body = TenantView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn update(
    State(app): State<App>,
    _admin: Admin,
    PathId(id): PathId<TenantId>,
    ValidJson(request): ValidJson<TenantRequest>,
) -> Result<Response, Problem> {
    let changed = app
        .store()
        .update_tenant(id, &request.checked()?)
        .await
        .map_err(taken_or)?;
    let tenant = changed.ok_or_else(|| Problem::not_found("tenant"))?;
    app.keyring().clear();
    tell(&app, &tenant).await;
    Ok(Json(TenantView::from(tenant)).into_response())
}

/// Pause a tenant: nothing of it is given to workers. What runs goes on, and what is submitted is accepted.
#[utoipa::path(post, path = "/tenants/{id}/pause", tag = "operating", params(("id" = String, Path, description = "The tenant")),
    responses((status = 200, body = TenantView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn pause(State(app): State<App>, _admin: Admin, PathId(id): PathId<TenantId>) -> Result<Response, Problem> {
    set_paused(&app, id, true).await
}

/// Resume a tenant.
#[utoipa::path(post, path = "/tenants/{id}/resume", tag = "operating", params(("id" = String, Path, description = "The tenant")),
    responses((status = 200, body = TenantView), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn resume(State(app): State<App>, _admin: Admin, PathId(id): PathId<TenantId>) -> Result<Response, Problem> {
    set_paused(&app, id, false).await
}

async fn set_paused(app: &App, id: TenantId, paused: bool) -> Result<Response, Problem> {
    let changed = app.store().set_tenant_paused(id, paused, app.clock().now()).await?;
    let tenant = changed.ok_or_else(|| Problem::not_found("tenant"))?;
    app.keyring().clear();
    tell(app, &tenant).await;
    Ok(Json(TenantView::from(tenant)).into_response())
}
