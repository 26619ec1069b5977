//! `GET /events`: the state changes of all of a tenant's jobs, for dashboards.
//!
//! It shows the present and does not resume: whoever connects lists the jobs first, and does so again when told that
//! changes were missed.

use std::collections::HashMap;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use common::ids::{JobId, TenantId};
use common::job::{Job, StateName};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::auth::Caller;
use crate::changes::Change;
use crate::extract::Params;
use crate::job::JobView;
use crate::problem::Problem;
use crate::sse;
use crate::state::App;

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
        changes: app.hub().changes().follow(),
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
    changes: Receiver<Change>,
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
            let change = tokio::select! {
                change = self.changes.recv() => change,
                () = &mut heartbeat => return Some(Bytes::from_static(sse::HEARTBEAT)),
                () = self.app.stopping().cancelled() => return None,
            };
            match change {
                Ok(Change::Jobs(jobs)) => self.show(&jobs, &mut out),
                Ok(Change::Missed) | Err(RecvError::Lagged(_)) => {
                    sse::write_named(&mut out, "resume_gap", &serde_json::json!({}));
                }
                Err(RecvError::Closed) => return None,
            }
        }
        Some(out.into())
    }

    /// Shows those of these jobs that are the tenant's and have changed.
    fn show(&mut self, jobs: &[Job], out: &mut Vec<u8>) {
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
