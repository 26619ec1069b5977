//! Health: whether the parts of a process make progress, and not only whether it lives.
//!
//! Each loop that must go on has a [`Pulse`]: it says that progress is *owed*, that there was some, or that it rightly
//! rests, such as while all slots are taken. A part that owes progress for longer than [`Health`] allows is stalled, and
//! the process is not ready. A connection that is open proves nothing here: what counts is work that went through.
//!
//! # Not here
//! Who asks: [`listener`] answers for workers and schedulers, the API has its own routes.

pub mod listener;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A pulse that never beat.
const UNBORN: u64 = u64::MAX;
/// Nothing is owed.
const RESTING: u64 = 0;

/// The pulses of a process. Cheap to clone; clones are the same health.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stall_max: Duration,
    begun: Instant,
    is_draining: AtomicBool,
    beats: Mutex<Vec<Weak<Beat>>>,
}

#[derive(Debug)]
struct Beat {
    name: String,
    pause: Duration,
    begun: Instant,
    /// Milliseconds after `begun`, from 1, since when progress is owed; or one of the two above.
    owed_since: AtomicU64,
}

/// How one part of a process says that it goes on. The part is forgotten when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Beat>);

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All of it in a word.
    pub status: Status,
    /// Each part, by name.
    pub parts: Vec<Part>,
}

/// A process in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every part makes progress, or rightly rests.
    Ok,
    /// A part has not begun, or owes progress for too long.
    Stalled,
    /// It finishes what it holds and takes nothing more.
    Draining,
}

/// One part of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Whether it makes progress, or rightly rests.
    pub ok: bool,
    /// Milliseconds for which it has owed progress; none while it rests or has not begun.
    pub owed_ms: Option<u64>,
}

impl Health {
    /// No parts yet. One that owes progress for longer than `stall_max`, beyond its own pause, is stalled.
    pub fn new(stall_max: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                stall_max,
                begun: Instant::now(),
                is_draining: AtomicBool::new(false),
                beats: Mutex::default(),
            }),
        }
    }

    /// A new part, which is not ready until it has begun. `pause` is how long it waits by itself between two rounds.
    pub fn pulse(&self, name: impl Into<String>, pause: Duration) -> Pulse {
        let beat = Arc::new(Beat {
            name: name.into(),
            pause,
            begun: self.inner.begun,
            owed_since: AtomicU64::new(UNBORN),
        });
        let mut beats = self.inner.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.retain(|beat| beat.strong_count() > 0);
        beats.push(Arc::downgrade(&beat));
        Pulse(beat)
    }

    /// Says that the process takes nothing more.
    pub fn drain(&self) {
        self.inner.is_draining.store(true, Ordering::Relaxed);
    }

    /// How every part is doing.
    pub fn report(&self) -> Report {
        self.report_at(elapsed_ms(self.inner.begun))
    }

    fn report_at(&self, now_ms: u64) -> Report {
        let beats = self.inner.beats.lock().unwrap_or_else(PoisonError::into_inner);
        let living = beats.iter().filter_map(Weak::upgrade);
        let mut parts: Vec<Part> = living.map(|beat| beat.part(now_ms, self.inner.stall_max)).collect();
        drop(beats);
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let status = if self.inner.is_draining.load(Ordering::Relaxed) {
            Status::Draining
        } else if parts.iter().all(|part| part.ok) {
            Status::Ok
        } else {
            Status::Stalled
        };
        Report { status, parts }
    }
}

impl Report {
    /// Whether the process can do its work.
    pub fn is_ready(&self) -> bool {
        self.status == Status::Ok
    }

    /// Names of the parts that make no progress.
    pub fn stalled(&self) -> Vec<String> {
        let stalled = self.parts.iter().filter(|part| !part.ok);
        stalled.map(|part| part.name.clone()).collect()
    }
}

impl Pulse {
    /// Progress is owed from now on, unless it has been owed for longer. One that never made any stays unready.
    pub fn owe(&self) {
        let now = elapsed_ms(self.0.begun);
        // Failing means that it is owed already, or never begun.
        let _owed = self
            .0
            .owed_since
            .compare_exchange(RESTING, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// There was progress; more is owed from now on.
    pub fn progress(&self) {
        self.0.owed_since.store(elapsed_ms(self.0.begun), Ordering::Relaxed);
    }

    /// Nothing is owed: the part waits for others, and rightly.
    pub fn rest(&self) {
        self.0.owed_since.store(RESTING, Ordering::Relaxed);
    }
}

impl Beat {
    fn part(&self, now_ms: u64, stall_max: Duration) -> Part {
        let (ok, owed_ms) = match self.owed_since.load(Ordering::Relaxed) {
            UNBORN => (false, None),
            RESTING => (true, None),
            since => {
                let owed_ms = now_ms.saturating_sub(since);
                let is_late = u128::from(owed_ms) > (stall_max + self.pause).as_millis();
                (!is_late, Some(owed_ms))
            }
        };
        Part {
            name: self.name.clone(),
            ok,
            owed_ms,
        }
    }
}

/// Milliseconds since `begun`, from 1.
fn elapsed_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).map_or(UNBORN - 1, |elapsed| elapsed + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_mins(10);
    /// Long after everything that a test does.
    const LATER: u64 = 1_100_000;

    #[test]
    fn a_part_that_owes_progress_for_too_long_is_stalled_until_it_makes_some() {
        let health = Health::new(STALL);
        let (steady, slow) = (health.pulse("steady", Duration::ZERO), health.pulse("slow", STALL));
        assert_eq!(health.report().stalled(), ["slow", "steady"], "neither has begun");
        steady.owe();
        assert!(!health.report().is_ready(), "owing is no beginning");
        steady.progress();
        slow.progress();
        assert!(health.report().is_ready());
        steady.owe();
        let later = health.report_at(LATER);
        assert_eq!(later.stalled(), ["steady"], "the other pauses for longer");
        assert!(later.parts[1].owed_ms.unwrap() > 1_000_000, "{later:?}");
        steady.0.owed_since.store(LATER, Ordering::Relaxed);
        assert!(health.report_at(LATER).is_ready());
    }

    #[test]
    fn who_rests_owes_nothing_and_who_is_gone_is_forgotten() {
        let health = Health::new(STALL);
        let (one, other) = (
            health.pulse("one", Duration::ZERO),
            health.pulse("other", Duration::ZERO),
        );
        one.rest();
        other.progress();
        assert_eq!(health.report_at(LATER).stalled(), ["other"]);
        drop(other);
        assert!(health.report_at(LATER).is_ready());
        one.owe();
        assert_eq!(health.report_at(LATER).stalled(), ["one"]);
        one.rest();
        health.drain();
        assert_eq!(health.report().status, Status::Draining);
        assert!(!health.report().is_ready());
    }
}
