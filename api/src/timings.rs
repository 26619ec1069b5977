//! How long requests take, by method, route and status.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::Histogram;

/// The histograms of what was answered so far. To find one by its labels costs the recorder three texts and a hash of them, a
/// twenty-fifth of what the server computes for a submission (callgrind): so each is asked for once.
#[derive(Default)]
pub(crate) struct Timings(RwLock<HashMap<String, Vec<Answered>>>);

/// What a route answered.
struct Answered {
    method: &'static str,
    status: StatusCode,
    seconds: Histogram,
}

impl fmt::Debug for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timings").finish_non_exhaustive()
    }
}

impl Timings {
    /// Counts an answer. `route` is one of the router's own paths.
    pub(crate) fn record(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let (method, seconds) = (name(method), took.as_secs_f64());
        let is_it = |answered: &&Answered| answered.method == method && answered.status == status;
        {
            let routes = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(answered) = routes.get(route).and_then(|known| known.iter().find(is_it)) {
                answered.seconds.record(seconds);
                return;
            }
        }
        let histogram = metrics::histogram!("hothouse_http_request_seconds",
            "method" => method, "route" => route.to_owned(), "status" => status.as_u16().to_string());
        histogram.record(seconds);
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = routes.entry(route.to_owned()).or_default();
        if !known.iter().any(|answered| is_it(&answered)) {
            known.push(Answered {
                method,
                status,
                seconds: histogram,
            });
        }
    }
}

/// The method, if it is one that somebody serves: a client may make up as many as it likes, and each would be remembered.
fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_methods_are_remembered_as_one() {
        let timings = Timings::default();
        for method in ["BREW", "WHEN", "GET", "GET"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            timings.record(&method, "/x", StatusCode::METHOD_NOT_ALLOWED, Duration::from_millis(1));
        }
        timings.record(&Method::GET, "/x", StatusCode::OK, Duration::from_millis(1));
        timings.record(&Method::GET, "/y", StatusCode::OK, Duration::from_millis(1));

        let routes = timings.0.read().unwrap();
        let known = |route: &str| routes[route].iter().map(|answered| answered.method).collect::<Vec<_>>();
        assert_eq!(known("/x"), ["other", "GET", "GET"]);
        assert_eq!(known("/y"), ["GET"]);
    }
}
