//! The routes. To add a resource: a module with `pub(crate) fn routes() -> OpenApiRouter<App>` whose handlers carry
//! `#[utoipa::path]`, and one line in [`resources`].

mod agents;
mod approvals;
mod budgets;
mod conversations;
mod environments;
mod events;
mod files;
mod health;
pub mod jobs;
mod keys;
pub(crate) mod limits;
mod operating;
mod sandboxes;
mod schedules;
mod tenants;
mod usage;

use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::extract::Cursor;
use crate::openapi::{self, BASE};
use crate::problem::{Code, Problem};
use crate::request;
use crate::state::App;

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct List<T> {
    /// The items, in the order of the list.
    pub data: Vec<T>,
    /// Give it as `cursor` to get the next page; `null` on the last one.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A list that has only one page.
    pub fn whole(data: Vec<T>) -> Self {
        Self {
            data,
            next_cursor: None,
        }
    }

    /// A page of `items`, of which one more than `limit` was asked for: so the last page is known to be the last.
    pub fn page<I, Id: Into<uuid::Uuid>>(
        mut items: Vec<I>,
        limit: u32,
        id: impl Fn(&I) -> Id,
        view: impl Fn(I) -> T,
    ) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| Cursor::encode(id(last)));
        Self {
            data: items.into_iter().map(view).collect(),
            next_cursor,
        }
    }
}

/// 201 with where the new thing is, below the base path.
pub(crate) fn created(path: &str, body: &impl Serialize) -> Response {
    let location = HeaderValue::from_str(&format!("{BASE}{path}"));
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The resources below the base path.
fn resources() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .merge(jobs::routes())
        .merge(events::routes())
        .merge(agents::routes())
        .merge(conversations::routes())
        .merge(approvals::routes())
        .merge(files::routes())
        .merge(schedules::routes())
        .merge(tenants::routes())
        .merge(budgets::routes())
        .merge(usage::routes())
        .merge(keys::routes())
        .merge(limits::routes())
        .merge(operating::routes())
        .merge(environments::routes())
        .merge(sandboxes::routes())
}

/// Every documented route, without layers.
pub(crate) fn open_api_router() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .nest(BASE, resources())
        .merge(health::routes())
}

/// The whole API.
pub(crate) fn router(app: App) -> Router {
    let (router, _) = open_api_router().split_for_parts();
    router
        .fallback(async || Problem::new(Code::NotFound, "there is no such path"))
        .method_not_allowed_fallback(async || {
            Problem::new(Code::MethodNotAllowed, "see /openapi.json for what there is")
        })
        .layer(from_fn_with_state(app.clone(), request::around))
        .with_state(app)
}
