//! Following jobs: one job's whole log, or a tenant's state changes.

mod feed;
mod follow;
mod page;
mod tokens;

use utoipa_axum::routes;

use crate::routes::Resource;

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(page::events))
        .routes(routes!(tokens::create))
        .routes(routes!(feed::feed))
}
