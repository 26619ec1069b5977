//! Closed-loop load: so many connections, each sending its next call when the last is answered.
//!
//! What is measured is what a caller with that many calls in flight sees. The latency of a call counts from its first
//! byte out to its last byte in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

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
}

/// The load to make.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// `host:port`.
    pub(super) address: String,
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
    /// Time before the measured time, in which everything gets warm.
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
}

impl Load {
    /// Makes the load and counts.
    pub(super) async fn run(&self) -> Tally {
        let bar = output::spinner();
        bar.set_message("measuring");
        let from = Instant::now() + self.warm_up;
        let mut callers = JoinSet::new();
        for _ in 0..self.connections {
            callers.spawn(caller(self.clone(), from));
        }
        let mut tally = Tally::default();
        while let Some(part) = callers.join_next().await {
            // A caller that panicked would falsify the count: its part is missing from what was accepted, and shows.
            let Ok(part) = part else { continue };
            tally.accepted.append(part.accepted);
            tally.accepted_ever += part.accepted_ever;
            for (status, count) in part.refused {
                *tally.refused.entry(status).or_default() += count;
            }
        }
        bar.finish_and_clear();
        tally
    }
}

async fn caller(load: Load, from: Instant) -> Tally {
    let until = from + load.measured;
    let mut tally = Tally::default();
    while Instant::now() < until {
        if calls(&load, from, until, &mut tally).await.is_err() {
            *tally.refused.entry(0).or_default() += 1;
            // A server that refuses connections is not to be hammered.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    tally
}

/// Calls over one connection until the time is over or the connection breaks.
async fn calls(load: &Load, from: Instant, until: Instant, tally: &mut Tally) -> std::io::Result<()> {
    let mut connection = Connection::open(&load.address).await?;
    let mut sent_at = Instant::now();
    while sent_at < until {
        let status = connection.exchange(&load.request).await?.status;
        let answered_at = Instant::now();
        if status == 202 {
            tally.accepted_ever += 1;
            if sent_at >= from && answered_at < until {
                tally.accepted.add(answered_at - sent_at);
            }
        } else {
            *tally.refused.entry(status).or_default() += 1;
        }
        sent_at = answered_at;
    }
    Ok(())
}
