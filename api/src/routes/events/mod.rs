//! Following jobs: one job's whole log, or a tenant's state changes.

mod feed;
mod follow;
mod page;
mod tokens;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(page::events))
        .routes(routes!(tokens::create))
        .routes(routes!(feed::feed))
}
