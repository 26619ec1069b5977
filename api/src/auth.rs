//! Who calls: API keys, looked up by their SHA-256 and believed for a few seconds.
//!
//! A key is random, so the lookup by its hash tells an attacker nothing by its timing.
//!
//! # Invariants
//! - Every route below the base path sees a [`Caller`], or is not reached.
//! - A caller acts for one tenant: its key's own or, for an admin, the one that `X-Tenant-Id` names.

mod bootstrap;
mod keyring;
mod stream_token;

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use common::ids::{ApiKeyId, JobId, TenantId};
use common::store::keys::Role;
use common::store::tenants::Tenant;

pub use bootstrap::ensure_admin_key;
pub use keyring::{Keyring, NewKey};
pub use stream_token::StreamToken;

use crate::problem::{Code, FieldError, Problem};
use crate::state::App;

/// Lets an admin act for a tenant.
const TENANT_HEADER: &str = "x-tenant-id";

/// Who calls, and for whom.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant that it acts for.
    pub tenant: Arc<Tenant>,
    /// The key.
    pub key_id: ApiKeyId,
    /// What the key may do.
    pub role: Role,
    /// The only job that it may follow, for the bearer of a stream token.
    pub only_job: Option<JobId>,
}

impl Caller {
    /// The tenant that it acts for.
    pub fn tenant_id(&self) -> TenantId {
        self.tenant.id
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthenticated)
    }
}

/// A caller whose key is an admin's.
#[derive(Clone, Debug)]
pub struct Admin(pub Caller);

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.role == Role::Admin {
            Ok(Self(caller))
        } else {
            Err(Problem::new(Code::Forbidden, "this needs an admin key"))
        }
    }
}

/// Lets a request below the base path through: finds the caller, counts the request, and says how many are left.
pub(crate) async fn admit(app: &App, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let caller = match identify(app, &parts).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let allowance = match app.rates().check(&caller.tenant) {
        Ok(allowance) => allowance,
        Err(refused) => return *refused,
    };
    parts.extensions.insert(caller);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    allowance.write(response.headers_mut());
    response
}

async fn identify(app: &App, request: &Parts) -> Result<Caller, Problem> {
    if let Some(token) = stream_token(request) {
        return StreamToken::verify(app, &token).await;
    }
    let key = bearer(&request.headers)?;
    let (key, tenant) = app
        .keyring()
        .by_secret(app.store(), key)
        .await?
        .ok_or_else(|| unknown(app))?;
    let mut caller = Caller {
        tenant,
        key_id: key.id,
        role: key.role,
        only_job: None,
    };
    if let Some(wanted) = request.headers.get(TENANT_HEADER) {
        let wanted = wanted
            .to_str()
            .ok()
            .and_then(|id| id.parse::<TenantId>().ok())
            .ok_or_else(|| Problem::invalid(vec![FieldError::header(TENANT_HEADER, "is not the id of a tenant")]))?;
        if wanted != caller.tenant.id {
            if caller.role != Role::Admin {
                return Err(Problem::new(
                    Code::Forbidden,
                    "only an admin key may act for another tenant",
                ));
            }
            let tenant = app.keyring().tenant(app.store(), wanted).await?;
            caller.tenant = tenant.ok_or_else(|| Problem::not_found("tenant"))?;
        }
    }
    Ok(caller)
}

/// A `?token=`, which is only heeded on the event stream of a job.
fn stream_token(request: &Parts) -> Option<String> {
    let route = request.extensions.get::<MatchedPath>()?.as_str();
    if !route.ends_with("/jobs/{id}/events") || request.headers.contains_key(header::AUTHORIZATION) {
        return None;
    }
    let query = request.uri.query()?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "token")
        .map(|(_, token)| token.into_owned())
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let (scheme, key) = value.split_once(' ').unwrap_or_default();
    let key = key.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !key.is_empty() && key.len() <= 512 {
        Ok(key)
    } else {
        Err(unauthenticated())
    }
}

/// The answer to a key that is nobody's. Where the configured key may be missing still, it may be that one: a client that was
/// told of a wrong key does not come again.
fn unknown(app: &App) -> Problem {
    if app.is_prepared() {
        unauthenticated()
    } else {
        Problem::unavailable("the server is being prepared")
    }
}

/// The answer to everybody whom we do not know.
pub(crate) fn unauthenticated() -> Problem {
    Problem::new(
        Code::Unauthenticated,
        "send a valid key as `Authorization: Bearer hh_…`",
    )
}
