//! What is removed by a try that nobody answered is removed.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::delete;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

/// Calls that are answered with 503 before there is nothing of that name any more.
struct Server {
    late: usize,
    calls: AtomicUsize,
}

async fn answer(State(server): State<Arc<Server>>) -> Response {
    if server.calls.fetch_add(1, Ordering::Relaxed) < server.late {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
    }
    StatusCode::NOT_FOUND.into_response()
}

async fn remove(late: usize) -> (Output, usize) {
    let server = Arc::new(Server {
        late,
        calls: AtomicUsize::default(),
    });
    let app = Router::new()
        .route("/api/v1/budgets/user/ann", delete(answer))
        .with_state(Arc::clone(&server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let output = Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .args([
            "budgets", "remove", "user", "ann", "--server", &address, "--key", "hh_any",
        ])
        .output()
        .await
        .unwrap();
    (output, server.calls.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_removal_that_was_answered_late_is_done_when_its_repetition_finds_nothing() {
    let (output, calls) = remove(1).await;
    assert!(output.status.success() && calls == 2, "{output:?} after {calls} calls");
    let (output, calls) = remove(0).await;
    assert!(
        !output.status.success() && calls == 1,
        "what was never there is an error: {output:?}"
    );
}
