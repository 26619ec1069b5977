//! Writing down what the duties did: every ten seconds, at most a second after a change, and at once when a tick failed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::clock::Clock;
use common::service::Report;
use common::store::Store;
use common::store::duties::DutyReport;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long ticks that changed nothing wait to be written down.
const PAUSE: Duration = Duration::from_secs(10);

/// How long those that changed something wait.
const CHANGED: Duration = Duration::from_secs(1);

/// Collects the reports of all duties of a process.
#[derive(Debug)]
pub(crate) struct Recorder {
    store: Store,
    clock: Clock,
    unwritten: Mutex<BTreeMap<&'static str, DutyReport>>,
    failed: Notify,
    changed: Notify,
}

impl Recorder {
    /// A recorder with nothing to write.
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self {
            store,
            clock,
            unwritten: Mutex::default(),
            failed: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// Hears of one tick.
    pub(crate) fn observe(&self, name: &'static str, interval: Duration, epoch: u64, outcome: &Result<Report, String>) {
        let now = self.clock.now();
        let changed = outcome.as_ref().map_or(0, |report| report.changed);
        let tick = DutyReport {
            name,
            epoch,
            interval,
            last_at: now,
            last_ok_at: outcome.is_ok().then_some(now),
            changed,
            ticks: 1,
            failures: u64::from(outcome.is_err()),
            changed_total: changed,
            error: outcome.as_ref().err().cloned(),
        };
        self.merge([tick]);
        if outcome.is_err() {
            self.failed.notify_one();
        } else if changed > 0 {
            self.changed.notify_one();
        }
    }

    /// Writes until `stop`, and then once more.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                () = self.failed.notified() => false,
                () = self.due() => false,
            };
            self.write().await;
            if stopped {
                return;
            }
        }
    }

    async fn due(&self) {
        let changed = async {
            tokio::time::sleep(CHANGED).await;
            self.changed.notified().await;
        };
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = changed => {}
        }
    }

    async fn write(&self) {
        let reports: Vec<DutyReport> = {
            let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *unwritten).into_values().collect()
        };
        if reports.is_empty() {
            return;
        }
        if let Err(error) = self.store.report_duties(&reports).await {
            tracing::debug!(error = format!("{error:#}"), "the duties' reports are written later");
            self.merge(reports);
        }
    }

    /// Adds reports to what is unwritten; the later one says what the last tick did.
    fn merge(&self, reports: impl IntoIterator<Item = DutyReport>) {
        let mut unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        for report in reports {
            let merged = match unwritten.remove(report.name) {
                None => report,
                Some(other) => {
                    let (old, new) = if other.last_at <= report.last_at {
                        (other, report)
                    } else {
                        (report, other)
                    };
                    DutyReport {
                        last_ok_at: new.last_ok_at.or(old.last_ok_at),
                        ticks: old.ticks + new.ticks,
                        failures: old.failures + new.failures,
                        changed_total: old.changed_total + new.changed_total,
                        ..new
                    }
                }
            };
            unwritten.insert(merged.name, merged);
        }
    }
}
