//! API keys. A key is shown once, when it is made.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::{ApiKeyId, TenantId};
use common::store::keys::{ApiKey, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{List, Resource, created};
use crate::auth::{Admin, Caller, NewKey};
use crate::extract::{Params, PathId, ValidJson};
use crate::problem::{Document, Problem};
use crate::state::App;

pub(super) fn routes() -> Resource {
    Resource::new().routes(routes!(create, list)).routes(routes!(revoke))
}

/// What a key may do.
#[derive(Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum KeyRole {
    /// Act for every tenant and operate the system.
    Admin,
    /// Act for its own tenant.
    Member,
}

impl From<Role> for KeyRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Member => Self::Member,
        }
    }
}

/// A key, without the key itself.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct KeyView {
    id: Uuid,
    tenant_id: Uuid,
    /// A name for people.
    name: String,
    role: KeyRole,
    /// Its first characters, to tell keys apart.
    prefix: String,
    created_at: DateTime<Utc>,
    /// Since when it is refused.
    revoked_at: Option<DateTime<Utc>>,
    /// The key: only in the answer to its making.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id.into(),
            tenant_id: key.tenant_id.into(),
            name: key.name,
            role: key.role.into(),
            prefix: key.prefix,
            created_at: key.created_at,
            revoked_at: key.revoked_at,
            key: None,
        }
    }
}

/// A key to make.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct KeyRequest {
    /// Whom it speaks for; the caller's tenant.
    tenant_id: Option<Uuid>,
    /// `member`.
    role: Option<KeyRole>,
    /// A name for people, at most 200 characters.
    name: Option<String>,
}

/// Make a key. The answer is the only place that ever shows it.
#[utoipa::path(post, path = "/keys", tag = "operating", request_body = KeyRequest,
    responses(
        (status = 201, body = KeyView),
        (status = 403, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
async fn create(
    State(app): State<App>,
    Admin(caller): Admin,
    ValidJson(request): ValidJson<KeyRequest>,
) -> Result<Response, Problem> {
    let tenant_id = request.tenant_id.map_or_else(|| caller.tenant_id(), TenantId::from);
    let name = request.name.unwrap_or_default();
    if name.contains('\0') || name.chars().count() > 200 {
        return Err(Problem::field("/name", "is at most 200 characters without NUL"));
    }
    if app.store().tenant(tenant_id).await?.is_none() {
        return Err(Problem::field("/tenant_id", "is not the id of a tenant"));
    }
    let role = match request.role {
        Some(KeyRole::Admin) => Role::Admin,
        Some(KeyRole::Member) | None => Role::Member,
    };
    let made = NewKey::generate(tenant_id, role, &name, app.clock().now());
    app.store().insert_key(&made.key).await?;
    let view = KeyView {
        key: Some(made.secret.expose().to_owned()),
        ..KeyView::from(made.key)
    };
    Ok(created(&format!("/keys/{}", view.id), &view))
}

/// List keys, newest first: an admin sees all, or those of `tenant_id`; others see their tenant's.
#[utoipa::path(get, path = "/keys", tag = "operating",
    params(("tenant_id" = Option<String>, Query, description = "Only those of this tenant"),
        ("limit" = Option<u32>, Query, description = "1 to 200; 50"), ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = List<KeyView>)))]
async fn list(State(app): State<App>, caller: Caller, mut params: Params) -> Result<Response, Problem> {
    let asked = params.parsed::<TenantId>("tenant_id", "an id");
    let (limit, before) = (params.limit(), params.cursor::<ApiKeyId>());
    params.finish()?;
    let tenant_id = if caller.role == Role::Admin {
        asked
    } else {
        Some(caller.tenant_id())
    };
    let keys = app.store().keys(tenant_id, before, limit + 1).await?;
    Ok(Json(List::page(keys, limit, |key| key.id, KeyView::from)).into_response())
}

/// Revoke a key. Other replicas may accept it for some seconds more.
#[utoipa::path(delete, path = "/keys/{id}", tag = "operating", params(("id" = String, Path, description = "The key")),
    responses((status = 204), (status = 404, body = Document, content_type = "application/problem+json")))]
async fn revoke(State(app): State<App>, _admin: Admin, PathId(id): PathId<ApiKeyId>) -> Result<Response, Problem> {
    let revoked = app.store().revoke_key(None, id, app.clock().now()).await?;
    revoked.ok_or_else(|| Problem::not_found("key"))?;
    app.keyring().clear();
    Ok(StatusCode::NO_CONTENT.into_response())
}
