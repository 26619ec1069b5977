//! Load on one address, from so many connections with one call in flight each.
//!
//! Closed loop: a connection sends its next call when the last is answered, as fast as the server lets it or after a
//! rest; a call's latency counts from its first byte out to its last byte in. Open loop, with a rate: calls have fixed
//! times. Where one has passed because the call before was not answered, the latency counts from the time at which the
//! call was due, so that a server which stalls is charged for every call that it kept from being made; else from the first
//! byte out, for the timers of this process wake it up to a millisecond late.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
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
    /// The job and the time of each call that counts in `accepted`, where they are kept: the one from which its latency
    /// counts.
    pub(super) calls: Vec<(Uuid, DateTime<Utc>)>,
}

/// When calls are made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// When the last of the connection is answered.
    Answered,
    /// So long after that.
    Rested(Duration),
    /// So many a second over all connections, at fixed times.
    Rate(u32),
}

/// The load to make.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// `host:port`.
    pub(super) address: String,
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
    pub(super) pace: Pace,
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
        let connections = u32::try_from(self.connections).unwrap_or(u32::MAX);
        let mut callers = JoinSet::new();
        for n in 0..connections {
            let turns = match self.pace {
                Pace::Answered => Turns::Answered,
                Pace::Rested(pause) => Turns::Rested(pause),
                Pace::Rate(rate) => {
                    let step = Duration::from_secs(1).div_f64(f64::from(rate));
                    Turns::Due {
                        next: began + step * n,
                        step: step * connections,
                    }
                }
            };
            callers.spawn(caller(self.clone(), from, turns));
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

/// When the next call of one connection is made.
#[derive(Debug)]
enum Turns {
    Answered,
    Rested(Duration),
    Due { next: Instant, step: Duration },
}

impl Turns {
    /// Waits for the next call, and answers from when it counts.
    async fn next(&mut self) -> Instant {
        match self {
            Self::Answered => {}
            Self::Rested(pause) => sleep(*pause).await,
            Self::Due { next, step } => {
                let due = *next;
                *next += *step;
                if due <= Instant::now() {
                    return due;
                }
                sleep_until(due.into()).await;
            }
        }
        Instant::now()
    }
}

async fn caller(load: Load, from: Instant, mut turns: Turns) -> Tally {
    let until = from + load.measured;
    let mut tally = Tally::default();
    while Instant::now() < until {
        if calls(&load, from..until, &mut turns, &mut tally).await.is_err() {
            *tally.refused.entry(0).or_default() += 1;
            // A server that refuses connections is not to be hammered.
            sleep(Duration::from_millis(50)).await;
        }
    }
    tally
}

/// Calls over one connection until the time is over or the connection breaks.
async fn calls(load: &Load, measured: Range<Instant>, turns: &mut Turns, tally: &mut Tally) -> std::io::Result<()> {
    let mut connection = Connection::open(&load.address).await?;
    loop {
        let sent_at = turns.next().await;
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
