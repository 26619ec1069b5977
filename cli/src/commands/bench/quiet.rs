//! A quiet machine: what one measurement leaves to be done, as vacuum does, is no part of the next one.

use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::report::Report;

/// A machine that works for less than this share of its time has nothing to do.
const SHARE: f64 = 0.06;

/// For as many seconds.
const SECONDS: u32 = 3;

/// What is not done by then is measured with the rest.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until nothing works on this machine, and remarks when something still does. Where there is no `/proc`, waits for nothing.
pub(super) async fn wait(report: &mut Report) {
    let begun = Instant::now();
    let (mut seconds, mut before) = (0, Ticks::now());
    while seconds < SECONDS {
        sleep(Duration::from_secs(1)).await;
        let now = Ticks::now();
        let (Some(from), Some(to)) = (before, now) else { return };
        seconds = if from.busy_until(to) < SHARE { seconds + 1 } else { 0 };
        if seconds == 0 && begun.elapsed() > PATIENCE {
            return report.remark("not alone", "something else works on this machine");
        }
        before = now;
    }
}

/// The time of all processors since the machine started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    all: u64,
    idle: u64,
}

impl Ticks {
    fn now() -> Option<Self> {
        Self::read(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// From `/proc/stat`, see `proc_stat(5)`: user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two.
    fn read(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [_, _, _, idle, waiting, ..] = ticks[..] else {
            return None;
        };
        Some(Self {
            all: ticks.iter().take(8).sum(),
            idle: idle + waiting,
        })
    }

    /// The share of the time between the two in which something worked.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a second")]
    fn busy_until(self, later: Self) -> f64 {
        let all = later.all.saturating_sub(self.all).max(1) as f64;
        let idle = later.idle.saturating_sub(self.idle) as f64;
        1.0 - (idle / all).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_time_that_is_worked_is_read() {
        let at =
            |user, idle, waiting| Ticks::read(&format!("cpu  {user} 5 10 {idle} {waiting} 1 2 3 40 0\ncpu0 1 2\n"));
        let (first, second) = (at(100, 1_000, 50).unwrap(), at(150, 1_100, 100).unwrap());
        assert_eq!((first.all, first.idle), (1_171, 1_050));
        assert!((first.busy_until(second) - 0.25).abs() < 1e-9);
        assert_eq!(Ticks::read("intr 1 2"), None);
    }
}
