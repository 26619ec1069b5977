//! What one attempt connected to, and what it may still use: caps, and a row for every decision.
//!
//! The rows are read by whoever writes them down; a row comes twice, when it was decided and when its connection has
//! ended, and the second time takes the place of the first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use common::clock::Clock;
use common::egress::Destination;
use tokio::sync::Notify;

use super::Settings;
use super::refusal::Refusal;

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number in the attempt, from 1.
    pub seq: u32,
    /// When the connection came.
    pub at: DateTime<Utc>,
    /// The method of its request, as far as that was read.
    pub method: Option<String>,
    /// Where it wanted to go, as far as that was read.
    pub destination: Option<Destination>,
    /// The address that was dialled.
    pub address: Option<IpAddr>,
    /// Whether it was allowed.
    pub is_allowed: bool,
    /// Why it was refused, or cut after it was allowed.
    pub refusal: Option<Refusal>,
    /// Bytes of the program.
    pub sent_bytes: u64,
    /// Bytes for the program.
    pub received_bytes: u64,
    /// From its begin to its end, when it has ended.
    pub duration: Option<Duration>,
}

/// The account of one attempt. Cheap to clone; clones are the same account.
#[derive(Clone, Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    caps: Caps,
    clock: Clock,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Caps {
    at_once: u32,
    in_all: u32,
    per_second: u32,
    bytes: u64,
}

#[derive(Debug)]
struct State {
    rows: BTreeMap<u32, Row>,
    open: u32,
    seq: u32,
    bytes: u64,
    // A bucket of connections that fills by the second.
    tokens: f64,
    filled: Instant,
}

impl Ledger {
    /// An empty account.
    pub fn new(settings: &Settings, clock: &Clock) -> Self {
        let caps = Caps {
            at_once: settings.connections_max,
            in_all: settings.connections_total_max,
            per_second: settings.connections_per_second,
            bytes: settings.bytes_max,
        };
        let state = State {
            rows: BTreeMap::new(),
            open: 0,
            seq: 0,
            bytes: 0,
            tokens: f64::from(caps.per_second),
            filled: Instant::now(),
        };
        Self {
            shared: Arc::new(Shared {
                caps,
                clock: clock.clone(),
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// A connection came. The second value says why it must end at once.
    pub(super) fn begin(&self) -> (Entry, Result<(), Refusal>) {
        let now = Instant::now();
        let at = self.shared.clock.now();
        let mut state = self.state();
        let verdict = state.admit(self.shared.caps, now);
        state.open += 1;
        // The row of the first one too many stands for all that follow.
        if state.seq <= self.shared.caps.in_all {
            state.seq += 1;
        }
        let row = Row {
            seq: state.seq,
            at,
            method: None,
            destination: None,
            address: None,
            is_allowed: false,
            refusal: None,
            sent_bytes: 0,
            received_bytes: 0,
            duration: None,
        };
        drop(state);
        let entry = Entry {
            ledger: self.clone(),
            row,
            began: now,
        };
        (entry, verdict)
    }

    /// Rows that are new or have changed since the last call.
    pub fn take_rows(&self) -> Vec<Row> {
        std::mem::take(&mut self.state().rows).into_values().collect()
    }

    /// Waits until there is a row to take. Cancel-safe.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    fn write(&self, row: Row) {
        self.state().rows.insert(row.seq, row);
        self.shared.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admit(&mut self, caps: Caps, now: Instant) -> Result<(), Refusal> {
        let full = f64::from(caps.per_second);
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = elapsed.mul_add(full, self.tokens).min(full);
        self.filled = now;
        if self.seq >= caps.in_all {
            Err(Refusal::TooMany)
        } else if self.bytes >= caps.bytes {
            Err(Refusal::TooManyBytes)
        } else if self.open >= caps.at_once {
            Err(Refusal::TooManyAtOnce)
        } else if self.tokens < 1.0 {
            Err(Refusal::TooFast)
        } else {
            self.tokens -= 1.0;
            Ok(())
        }
    }
}

/// One connection's row, and its place among those that are open. Dropping it writes the row with its end.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Ledger,
    row: Row,
    began: Instant,
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Sent,
    Received,
}

impl Entry {
    /// What it asks for.
    pub(super) fn asks(&mut self, method: &str, destination: &Destination) {
        self.row.method = Some(method.to_owned());
        self.row.destination = Some(destination.clone());
    }

    /// The address that stands for its host.
    pub(super) fn dialled(&mut self, address: IpAddr) {
        self.row.address = Some(address);
    }

    /// It may go on. The row is written at once: a connection may outlive this worker's memory of it.
    pub(super) fn allow(&mut self) {
        self.row.is_allowed = true;
        metrics::counter!("hothouse_egress_connections_total", "decision" => "allowed").increment(1);
        self.ledger.write(self.row.clone());
    }

    /// It may not, or no longer.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.row.refusal = Some(refusal);
        let decision = if self.row.is_allowed { "cut" } else { "refused" };
        metrics::counter!("hothouse_egress_connections_total", "decision" => decision).increment(1);
    }

    /// Counts bytes.
    ///
    /// # Errors
    /// [`Refusal::TooManyBytes`] when the attempt has used up what it may.
    pub(super) fn count(&mut self, way: Way, bytes: usize) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        match way {
            Way::Sent => self.row.sent_bytes += bytes,
            Way::Received => self.row.received_bytes += bytes,
        }
        let mut state = self.ledger.state();
        state.bytes = state.bytes.saturating_add(bytes);
        if state.bytes > self.ledger.shared.caps.bytes {
            return Err(Refusal::TooManyBytes);
        }
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.row.duration = Some(self.began.elapsed());
        self.ledger.state().open -= 1;
        self.ledger.write(self.row.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(change: impl FnOnce(&mut Settings)) -> Ledger {
        let mut settings = Settings::default();
        change(&mut settings);
        Ledger::new(&settings, &Clock::system())
    }

    #[test]
    fn a_row_comes_when_it_is_decided_and_again_when_it_ended() {
        let ledger = ledger(|_| {});
        let (mut entry, verdict) = ledger.begin();
        assert_eq!(verdict, Ok(()));
        entry.asks("CONNECT", &Destination::parse("a.org:443", None).unwrap());
        entry.allow();
        let rows = ledger.take_rows();
        assert!(rows[0].is_allowed && rows[0].duration.is_none());
        entry.count(Way::Sent, 3).unwrap();
        entry.count(Way::Received, 4).unwrap();
        entry.refuse(Refusal::Idle);
        drop(entry);
        let [row] = &ledger.take_rows()[..] else {
            panic!("one row")
        };
        assert_eq!((row.seq, row.sent_bytes, row.received_bytes), (1, 3, 4));
        assert!(row.is_allowed && row.duration.is_some() && row.refusal == Some(Refusal::Idle));
        assert!(ledger.take_rows().is_empty());
    }

    #[test]
    fn connections_are_capped_at_once_and_places_come_back() {
        let ledger = ledger(|settings| settings.connections_max = 2);
        let (first, second) = (ledger.begin(), ledger.begin());
        assert_eq!((first.1, second.1), (Ok(()), Ok(())));
        assert_eq!(ledger.begin().1, Err(Refusal::TooManyAtOnce));
        drop(first.0);
        assert_eq!(ledger.begin().1, Ok(()));
    }

    #[test]
    fn rows_are_bounded_and_the_last_one_stands_for_all_that_follow() {
        let ledger = ledger(|settings| settings.connections_total_max = 3);
        let verdicts: Vec<_> = (0..10)
            .map(|_| {
                let (mut entry, verdict) = ledger.begin();
                verdict.inspect_err(|refusal| entry.refuse(*refusal))
            })
            .collect();
        assert_eq!(verdicts[..3], [Ok(()); 3]);
        assert_eq!(verdicts[3..], [Err(Refusal::TooMany); 7]);
        let rows = ledger.take_rows();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(rows[3].refusal, Some(Refusal::TooMany));
    }

    #[test]
    fn the_rate_of_connections_is_capped() {
        let ledger = ledger(|settings| settings.connections_per_second = 5);
        let verdicts: Vec<_> = (0..6).map(|_| ledger.begin().1).collect();
        assert_eq!(verdicts[..5], [Ok(()); 5]);
        assert_eq!(verdicts[5], Err(Refusal::TooFast));
        ledger.state().filled -= Duration::from_secs(1);
        assert_eq!(ledger.begin().1, Ok(()));
    }

    #[test]
    fn bytes_are_capped_over_all_connections() {
        let ledger = ledger(|settings| settings.bytes_max = 10);
        let (mut first, _) = ledger.begin();
        let (mut second, _) = ledger.begin();
        assert_eq!(first.count(Way::Sent, 6), Ok(()));
        assert_eq!(second.count(Way::Received, 6), Err(Refusal::TooManyBytes));
        assert_eq!(ledger.begin().1, Err(Refusal::TooManyBytes));
    }
}
