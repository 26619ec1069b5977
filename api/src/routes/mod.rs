//! The routes. To add a resource: a module with `pub(crate) fn routes() -> Resource` whose handlers carry
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
use axum::routing::MethodRouter;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::{OpenApi, Paths};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

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

/// Routes below the base path, each registered whole. With axum's `nest` every request would pass two layers more, which cut the
/// base off its path, and each layer costs two copies of the route.
#[derive(Default)]
pub(crate) struct Resource(OpenApiRouter<App>);

impl Resource {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With descriptions of what is added by [`Self::route`].
    pub(crate) fn described(document: OpenApi) -> Self {
        Self(OpenApiRouter::with_openapi(OpenApi::default().nest(BASE, document)))
    }

    /// Adds what `routes!` makes of handlers.
    pub(crate) fn routes(self, (schemas, paths, methods): UtoipaMethodRouter<App>) -> Self {
        let mut whole = Paths::new();
        whole.paths = paths
            .paths
            .into_iter()
            .map(|(path, item)| (format!("{BASE}{path}"), item))
            .collect();
        Self(self.0.routes((schemas, whole, methods)))
    }

    /// Adds what the document describes otherwise.
    pub(crate) fn route(self, path: &str, methods: MethodRouter<App>) -> Self {
        Self(self.0.route(&format!("{BASE}{path}"), methods))
    }

    pub(crate) fn merge(self, other: Self) -> Self {
        Self(self.0.merge(other.0))
    }
}

/// The resources below the base path.
fn resources() -> Resource {
    Resource::new()
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
        .merge(resources().0)
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
