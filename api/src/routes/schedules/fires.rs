//! Firing a schedule by hand, and what became of its due times.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use common::ids::ScheduleId;
use common::queue::Dispatch;
use common::schedule::Fire;
use common::store::fire::Manual;
use uuid::Uuid;

use super::read::find;
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::job::JobView;
use crate::problem::{Code, Document, Problem};
use crate::routes::List;
use crate::routes::jobs::strategy::make_way;
use crate::routes::jobs::{accepted, to_json};
use crate::state::App;

/// Fire a schedule now.
///
/// It makes a job whether or not the schedule is paused or its last job has ended; the next due time stays as it is.
#[utoipa::path(post, path = "/schedules/{id}/fire", tag = "schedules",
    params(("id" = String, Path, description = "The schedule")),
    responses(
        (status = 202, body = JobView<'static>, headers(("Location" = String, description = "Where the job is"))),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json")))]
pub(super) async fn fire(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
) -> Result<Response, Problem> {
    match app.store().fire_now(caller.tenant_id(), id).await? {
        Manual::Fired(job, gone) => {
            make_way(&app, &gone).await;
            app.submitter().dispatch(vec![Dispatch::from_new(&job)]);
            app.hub().announce(job.id);
            Ok(accepted(job.id, to_json(&JobView::accepted(&job))))
        }
        Manual::Refused(reason) => Err(Problem::new(Code::Conflict, reason)),
        Manual::NotFound => Err(Problem::not_found("schedule")),
    }
}

/// List what became of a schedule's due times, latest first.
#[utoipa::path(get, path = "/schedules/{id}/fires", tag = "schedules",
    params(("id" = String, Path, description = "The schedule"),
        ("limit" = Option<u32>, Query, description = "Most items, 1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "The last page's `next_cursor`")),
    responses(
        (status = 200, body = List<Fire>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ScheduleId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let (limit, before) = (params.limit(), params.cursor::<Place>());
    params.finish()?;
    find(&app, &caller, id).await?;
    let fires = app.store().fires(id, before.map(Place::time), limit + 1).await?;
    Ok(Json(List::page(fires, limit, |fire| Place::of(fire.fire_at), |fire| fire)).into_response())
}

/// A place in a list that is ordered by time: microseconds since 1970 where other lists have an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(Uuid);

impl Place {
    fn of(at: DateTime<Utc>) -> Self {
        Self(Uuid::from_u128(u128::try_from(at.timestamp_micros()).unwrap_or(0)))
    }

    /// Garbage is a time so late that the list begins at its begin.
    fn time(self) -> DateTime<Utc> {
        let micros = i64::try_from(self.0.as_u128()).unwrap_or(i64::MAX).min(Self::LATEST);
        DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
    }

    /// The year 2200, microseconds.
    const LATEST: i64 = 7_258_118_400_000_000;
}

impl From<Uuid> for Place {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl From<Place> for Uuid {
    fn from(place: Place) -> Self {
        place.0
    }
}
