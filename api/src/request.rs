//! What happens around every request: its id, its time limit, its caller, its metrics, and a net for panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use uuid::Uuid;

use crate::auth;
use crate::linger::lingering;
use crate::openapi::BASE;
use crate::problem::{Code, Problem};
use crate::state::App;

/// Names a request in answers and logs.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static ID: String;
}

/// The id of the request that this task answers; empty outside one.
pub(crate) fn current_id() -> String {
    ID.try_with(Clone::clone).unwrap_or_default()
}

/// The only layer. Another would cost each request two copies of everything below it, so what others would do is called
/// from here.
pub(crate) async fn around(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let header = HeaderValue::from_str(&id);
    let request = lingering(request, app.stopping());
    let mut response = ID.scope(id, answer(&app, request, next)).await;
    let headers = response.headers_mut();
    if let Ok(header) = header {
        headers.insert(REQUEST_ID, header);
    }
    // No answer of ours is anything but what its type says.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What is below the base path is for known callers; what is nowhere is not found by anybody.
async fn admitted(app: &App, route: Option<&MatchedPath>, request: Request, next: Next) -> Response {
    let is_below = |route: &MatchedPath| {
        route
            .as_str()
            .strip_prefix(BASE)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    if route.is_some_and(is_below) {
        auth::admit(app, request, next).await
    } else {
        next.run(request).await
    }
}

async fn answer(app: &App, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut limit = app.config().http.request_timeout;
    if request.uri().query().is_some_and(|query| query.contains("wait=")) {
        limit += app.config().http.wait_max;
    }
    let handled = tokio::time::timeout(
        limit,
        AssertUnwindSafe(admitted(app, route.as_ref(), request, next)).catch_unwind(),
    )
    .await;
    let response = match handled {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            metrics::counter!("hothouse_http_panics_total").increment(1);
            tracing::error!(request_id = current_id(), %method, "a handler panicked");
            Problem::new(Code::Internal, "the fault is in our log under this request's id").into_response()
        }
        Err(_) => Problem::new(Code::RequestTimeout, "the request took too long")
            .with_retry_after(std::time::Duration::from_secs(2))
            .into_response(),
    };
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    app.timings()
        .record(&method, route, response.status(), started.elapsed());
    response
}

/// The caller's id when it is harmless to log and to send back, else a new one.
fn request_id(request: &Request) -> String {
    let harmless = |id: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=100).contains(&id.len()) && id.bytes().all(allowed)
    };
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(harmless);
    given.map_or_else(|| format!("req_{}", Uuid::new_v4().simple()), str::to_owned)
}
