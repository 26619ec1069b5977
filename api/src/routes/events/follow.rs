//! One reader of one job's log, live.
//!
//! The body is made while the client takes it: a slow client makes slow reads and holds nothing. Its going away ends
//! the reading and nothing else: a job is cancelled by an explicit call only.

use std::time::Duration;

use bytes::Bytes;
use common::ids::{JobId, TenantId};
use common::log::Page;
use common::store;
use futures_util::{Stream, stream};
use tokio::time::Instant;

use crate::auth::Caller;
use crate::hub::{Follower, Told};
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
    /// What was said before the last look that found everything; none when the next must look at everything too.
    seen: Option<Told>,
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
        let mut follower = app.hub().follow(job_id);
        let told = follower.told();
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
            seen: (!page.more).then_some(told),
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

    /// Reads from the cursor when there may be something, and waits when there is nothing.
    async fn look(&mut self, out: &mut Vec<u8>) {
        tokio::time::sleep_until(self.last_read + READ_GAP).await;
        let heartbeat = self.app.config().http.heartbeat;
        let told = self.follower.told();
        let mut pause = self.app.hub().patience(heartbeat);
        if !self.has_seen(told) {
            self.last_read = Instant::now();
            match self.read(told).await {
                Ok(Some(page)) if !page.events.is_empty() || page.ended => {
                    self.take(&page, out);
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
        }
        tokio::select! {
            () = self.follower.woken() => {}
            () = tokio::time::sleep(pause) => self.seen = None,
            () = tokio::time::sleep_until(self.heartbeat_at) => {
                self.seen = None;
                out.extend_from_slice(sse::HEARTBEAT);
                self.heartbeat_at = Instant::now() + heartbeat;
            }
            () = self.app.stopping().cancelled() => self.is_over = true,
        }
    }

    /// Whether everything that was told of is sent, or was looked for.
    fn has_seen(&self, told: Told) -> bool {
        self.seen
            .is_some_and(|seen| seen.changes == told.changes && told.seq <= self.after.max(seen.seq))
    }

    /// What follows the cursor. While one number follows the other in the live tail, nothing else can be there, and neither
    /// the row nor what is written is read: that would be two queries for each word of an answer.
    async fn read(&mut self, told: Told) -> Result<Option<Page>, store::Error> {
        let is_only_longer = self.seen.is_some_and(|seen| seen.changes == told.changes);
        let log = self.app.log();
        if is_only_longer && let Some(page) = log.continued(self.tenant_id, self.job_id, self.after).await {
            return Ok(Some(page));
        }
        self.seen = None;
        let page = log.read(self.tenant_id, self.job_id, self.after, READ_MAX).await?;
        self.seen = page.as_ref().is_some_and(|page| !page.more).then_some(told);
        Ok(page)
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
