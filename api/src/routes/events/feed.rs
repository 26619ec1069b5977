//! `GET /events`: the state changes of all of a tenant's jobs, for dashboards.
//!
//! It shows the present and does not resume: whoever connects lists the jobs first, and does so again when told that
//! changes were missed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use common::ids::{JobId, TenantId};
use common::job::StateName;
use futures_util::{Stream, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::auth::Caller;
use crate::extract::Params;
use crate::job::JobView;
use crate::problem::Problem;
use crate::sse;
use crate::state::App;

/// Hints are looked up together: this long, or so many.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOW_MAX: usize = 500;
/// Jobs whose last shown state is remembered.
const SHOWN_MAX: usize = 10_000;

/// Follow every job.
///
/// A stream of `job` events, each with a job after its change. `resume_gap` says that changes were missed: list the
/// jobs again.
#[utoipa::path(get, path = "/events", tag = "events",
    responses((status = 200, body = String, content_type = "text/event-stream")))]
pub(super) async fn feed(State(app): State<App>, caller: Caller, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let feed = Feed {
        hints: app.hub().feed(),
        tenant_id: caller.tenant_id(),
        shown: HashMap::new(),
        has_begun: false,
        app,
    };
    Ok(sse::response(feed.frames()))
}

struct Feed {
    app: App,
    tenant_id: TenantId,
    hints: Receiver<JobId>,
    shown: HashMap<JobId, (StateName, u32)>,
    has_begun: bool,
}

impl Feed {
    fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut this| async move {
            let frame = this.next().await?;
            Some((frame, this))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if !self.has_begun {
            self.has_begun = true;
            return Some(Bytes::from_static(sse::PREAMBLE));
        }
        let heartbeat = tokio::time::sleep(self.app.config().http.heartbeat);
        tokio::pin!(heartbeat);
        let mut out = Vec::new();
        while out.is_empty() {
            let first = tokio::select! {
                first = self.hints.recv() => first,
                () = &mut heartbeat => return Some(Bytes::from_static(sse::HEARTBEAT)),
                () = self.app.stopping().cancelled() => return None,
            };
            match first {
                Ok(job_id) => self.show(job_id, &mut out).await,
                Err(RecvError::Lagged(missed)) => {
                    sse::write_named(&mut out, "resume_gap", &serde_json::json!({ "missed": missed }));
                }
                Err(RecvError::Closed) => return None,
            }
        }
        Some(out.into())
    }

    /// Shows the jobs of this hint and of those that come right after it, where they changed.
    async fn show(&mut self, first: JobId, out: &mut Vec<u8>) {
        let mut ids = HashSet::from([first]);
        let mut missed = 0;
        let collect = async {
            while ids.len() < WINDOW_MAX {
                match self.hints.recv().await {
                    Ok(job_id) => drop(ids.insert(job_id)),
                    Err(RecvError::Lagged(more)) => missed += more,
                    Err(RecvError::Closed) => break,
                }
            }
        };
        // Ended by the window's time or its size, whichever comes first.
        drop(tokio::time::timeout(WINDOW, collect).await);
        if missed > 0 {
            sse::write_named(out, "resume_gap", &serde_json::json!({ "missed": missed }));
        }
        let ids: Vec<JobId> = ids.into_iter().collect();
        let jobs = match self.app.store().jobs(&ids).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::debug!(%error, "changed jobs cannot be read");
                sse::write_named(out, "resume_gap", &serde_json::json!({ "missed": ids.len() }));
                return;
            }
        };
        for job in jobs.iter().filter(|job| job.tenant_id == self.tenant_id) {
            let now = (job.state.name(), job.attempt);
            if self.shown.insert(job.id, now) != Some(now) {
                sse::write_named(out, "job", &JobView::new(job));
            }
            if self.shown.len() > SHOWN_MAX {
                self.shown.clear();
            }
        }
    }
}
