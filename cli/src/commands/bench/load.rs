//! Load on one address, from so many connections with one call in flight each.
//!
//! Closed loop, without a rate: a connection sends its next call when the last is answered, as fast as the server lets
//! it; a call's latency counts from its first byte out to its last byte in. Open loop, with a rate: calls have fixed
//! times, and a latency counts from the time at which the call was due, so that a server which stalls is charged for
//! every call that it kept from being made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::latency::Samples;
use super::wire::Connection;
use crate::output;

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Latencies of the calls answered with 202 within the measured time.
    pub(super) accepted: Samples,
    /// All calls answered with 202, the warm-up's too.
    pub(super) accepted_ever: u64,
    /// Calls that were answered otherwise, by status; 0 for a connection that broke.
    pub(super) refused: BTreeMap<u16, u64>,
    /// The job and the time of each call that counts in `accepted`, where they are kept: of a fixed rate, the time at
    /// which it was due.
    pub(super) calls: Vec<(Uuid, DateTime<Utc>)>,
}

/// The load to make.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// `host:port`.
    pub(super) address: String,
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
    /// Calls a second over all connections; none is as many as are answered.
    pub(super) rate: Option<u32>,
    /// Time before the measured time, in which everything gets warm.
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
    /// Keep the job and the time of each call.
    pub(super) keeps_calls: bool,
}

impl Load {
    /// Makes the load and counts.
    pub(super) async fn run(&self) -> Tally {
        let bar = output::spinner();
        bar.set_message("measuring");
        let began = Instant::now();
        let from = began + self.warm_up;
        let step = self.rate.map(|rate| Duration::from_secs(1).div_f64(f64::from(rate)));
        let mut callers = JoinSet::new();
        for n in 0..u32::try_from(self.connections).unwrap_or(u32::MAX) {
            let due = step.map(|step| Due {
                next: began + step * n,
                step: step * u32::try_from(self.connections).unwrap_or(u32::MAX),
            });
            callers.spawn(caller(self.clone(), from, due));
        }
        let mut tally = Tally::default();
        while let Some(part) = callers.join_next().await {
            // A caller that panicked would falsify the count: its part is missing from what was accepted, and shows.
            let Ok(part) = part else { continue };
            tally.accepted.append(part.accepted);
            tally.accepted_ever += part.accepted_ever;
            tally.calls.extend(part.calls);
            for (status, count) in part.refused {
                *tally.refused.entry(status).or_default() += count;
            }
        }
        bar.finish_and_clear();
        tally
    }
}

/// When the calls of one connection are due.
#[derive(Debug)]
struct Due {
    next: Instant,
    step: Duration,
}

impl Due {
    /// Waits for the next call's time, and answers it; it may have passed already.
    async fn wait(&mut self) -> Instant {
        let due = self.next;
        self.next += self.step;
        tokio::time::sleep_until(due.into()).await;
        due
    }
}

async fn caller(load: Load, from: Instant, mut due: Option<Due>) -> Tally {
    let until = from + load.measured;
    let mut tally = Tally::default();
    while Instant::now() < until {
        if calls(&load, from..until, &mut due, &mut tally).await.is_err() {
            *tally.refused.entry(0).or_default() += 1;
            // A server that refuses connections is not to be hammered.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    tally
}

/// Calls over one connection until the time is over or the connection breaks.
async fn calls(load: &Load, measured: Range<Instant>, due: &mut Option<Due>, tally: &mut Tally) -> std::io::Result<()> {
    let mut connection = Connection::open(&load.address).await?;
    loop {
        let sent_at = match due {
            Some(due) => due.wait().await,
            None => Instant::now(),
        };
        if sent_at >= measured.end {
            return Ok(());
        }
        let answer = connection.exchange(&load.request).await?;
        let answered_at = Instant::now();
        let status = answer.status;
        let job = load.keeps_calls.then(|| job_of(answer.body)).flatten();
        if status == 202 {
            tally.accepted_ever += 1;
            if measured.contains(&sent_at) && answered_at < measured.end {
                tally.accepted.add(answered_at - sent_at);
                tally.calls.extend(job.map(|id| (id, wall(sent_at))));
            }
        } else {
            *tally.refused.entry(status).or_default() += 1;
        }
    }
}

/// The id of the job that an answer shows: the first thing it says.
fn job_of(body: &[u8]) -> Option<Uuid> {
    let id = body.strip_prefix(b"{\"id\":\"")?.get(..36)?;
    Uuid::try_parse_ascii(id).ok()
}

/// The wall clock's reading of a moment just passed.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times in the rows, on the same machine"
)]
fn wall(at: Instant) -> DateTime<Utc> {
    Utc::now() - at.elapsed()
}
