//! One reader of one job's log, live.
//!
//! The body is made while the client takes it: a slow client makes slow reads and holds nothing. Its going away ends
//! the reading and nothing else: a job is cancelled by an explicit call only.

use std::time::Duration;

use bytes::Bytes;
use common::ids::{JobId, TenantId};
use common::log::Page;
use futures_util::{Stream, stream};
use tokio::time::Instant;

use crate::auth::Caller;
use crate::hub::Follower;
use crate::problem::Problem;
use crate::sse;
use crate::state::App;

/// Events of one read.
const READ_MAX: usize = 500;
/// Least time between two reads of one follower: hints may come faster than anybody reads.
const READ_GAP: Duration = Duration::from_millis(5);
/// Time to the next read after one that failed.
const RETRY: Duration = Duration::from_secs(1);

/// A follower at its cursor.
pub(super) struct Follow {
    app: App,
    tenant_id: TenantId,
    job_id: JobId,
    after: u64,
    follower: Follower,
    /// Read, but not sent.
    ready: Option<Page>,
    is_over: bool,
    last_read: Instant,
    heartbeat_at: Instant,
    has_begun: bool,
}

impl Follow {
    /// Begins at a cursor; `None` when the job has ended there or before.
    pub(super) async fn start(app: App, caller: &Caller, job_id: JobId, after: u64) -> Result<Option<Self>, Problem> {
        let follower = app.hub().follow(job_id);
        let page = app.log().read(caller.tenant_id(), job_id, after, READ_MAX).await?;
        let page = page.ok_or_else(|| Problem::not_found("job"))?;
        if page.ended && page.events.is_empty() {
            return Ok(None);
        }
        let heartbeat_at = Instant::now() + app.config().http.heartbeat;
        Ok(Some(Self {
            app,
            tenant_id: caller.tenant_id(),
            job_id,
            after,
            follower,
            ready: Some(page),
            is_over: false,
            last_read: Instant::now(),
            heartbeat_at,
            has_begun: false,
        }))
    }

    /// The body.
    pub(super) fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut this| async move {
            let frame = this.next().await?;
            Some((frame, this))
        })
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        if !self.has_begun {
            self.has_begun = true;
            out.extend_from_slice(sse::PREAMBLE);
        }
        if let Some(page) = self.ready.take() {
            self.take(&page, &mut out);
        }
        while out.is_empty() && !self.is_over {
            self.look(&mut out).await;
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Reads from the cursor, and waits when there is nothing.
    async fn look(&mut self, out: &mut Vec<u8>) {
        tokio::time::sleep_until(self.last_read + READ_GAP).await;
        let heartbeat = self.app.config().http.heartbeat;
        let mut woken = std::pin::pin!(self.follower.woken());
        woken.as_mut().enable();
        self.last_read = Instant::now();
        let mut pause = self.app.hub().patience(heartbeat);
        match self
            .app
            .log()
            .read(self.tenant_id, self.job_id, self.after, READ_MAX)
            .await
        {
            Ok(Some(page)) if !page.events.is_empty() || page.ended => {
                self.after = page.events.last().map_or(self.after, |event| event.seq);
                self.is_over = page.ended;
                write(&page, out);
                self.heartbeat_at = Instant::now() + heartbeat;
                return;
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                self.is_over = true;
                return;
            }
            // The connection stays: Postgres may be back before the client would be.
            Err(error) => {
                tracing::debug!(job_id = %self.job_id, %error, "a log cannot be read");
                pause = pause.min(RETRY);
            }
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep(pause) => {}
            () = tokio::time::sleep_until(self.heartbeat_at) => {
                out.extend_from_slice(sse::HEARTBEAT);
                self.heartbeat_at = Instant::now() + heartbeat;
            }
            () = self.app.stopping().cancelled() => self.is_over = true,
        }
    }

    fn take(&mut self, page: &Page, out: &mut Vec<u8>) {
        self.after = page.events.last().map_or(self.after, |event| event.seq);
        self.is_over = page.ended;
        write(page, out);
    }
}

fn write(page: &Page, out: &mut Vec<u8>) {
    for event in &page.events {
        sse::write_event(out, event);
    }
}
