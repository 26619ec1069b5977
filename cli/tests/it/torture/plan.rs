//! What goes wrong, and when: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How many processes of each kind there are.
pub(super) const APIS: usize = 2;
pub(super) const WORKERS: usize = 3;
pub(super) const SCHEDULERS: usize = 2;
const PROCESSES: usize = APIS + WORKERS + SCHEDULERS;

/// Mean time between the beginnings of two faults.
const PAUSE: Duration = Duration::from_millis(2_500);

/// Longest that a process is frozen.
const FROZEN_MAX: Duration = Duration::from_secs(30);

/// Longest that a server or a wire is away.
const AWAY_MAX: Duration = Duration::from_secs(12);

/// Faults that last at the same time: some of the system is to work while others fail.
const AT_ONCE: usize = 3;

/// What a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Postgres,
    Redis,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// SIGKILL of a process, by its number, and a new one when it is over.
    Kill(usize),
    /// SIGTERM, and a new one when it is over.
    Terminate(usize),
    /// SIGSTOP, then SIGCONT.
    Freeze(usize),
    FlushRedis,
    /// It is killed, and comes back empty.
    RestartRedis,
    /// It saves what it holds, runs on, is killed, and comes back with what it saved.
    RollBackRedis,
    FreezeRedis,
    /// It is stopped, at once or in good order, and comes back.
    RestartPostgres {
        is_immediate: bool,
    },
    /// A process's connections to what it needs break, and new ones too.
    Cut(usize, Need),
    /// They stand still until it is over.
    Hold(usize, Need),
    /// Every piece on them comes late.
    Slow(usize, Need, Duration),
    /// Those that there are stand still for good.
    Silence(usize, Need),
    /// As `Cut`, for everybody at once.
    CutAll(Need),
}

/// A fault with its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Planned {
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    pub(super) fault: Fault,
}

/// Which faults there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinds {
    All,
    /// SIGKILL of processes alone, to measure how long a takeover takes.
    Kills,
}

/// A number of `PROCESSES` as people call the process.
pub(super) fn name_of(process: usize) -> String {
    match process {
        n if n < APIS => format!("api-{n}"),
        n if n < APIS + WORKERS => format!("worker-{}", n - APIS),
        n => format!("scheduler-{}", n - APIS - WORKERS),
    }
}

pub(super) fn is_worker(process: usize) -> bool {
    (APIS..APIS + WORKERS).contains(&process)
}

/// The faults of a storm of this length, in order of time. All are over when it is.
pub(super) fn plan(seed: u64, length: Duration, kinds: Kinds) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned: Vec<Planned> = Vec::new();
    let mut at = Duration::from_secs(2);
    while at + Duration::from_secs(2) < length {
        let fault = match kinds {
            Kinds::All => any(&mut rng),
            Kinds::Kills => Fault::Kill(APIS + rng.random_range(0..WORKERS)),
        };
        let lasts = match kinds {
            Kinds::All => lasts(&mut rng, fault, length).min(length.saturating_sub(at)),
            // How soon a job runs elsewhere is asked, not how long a queue gets that too few workers serve.
            Kinds::Kills => Duration::from_millis(200),
        };
        let under_way: Vec<&Planned> = planned.iter().filter(|one| one.at + one.lasts >= at).collect();
        let is_free = under_way.iter().all(|one| !collide(one.fault, fault));
        if is_free && under_way.len() < AT_ONCE {
            planned.push(Planned { at, lasts, fault });
        }
        at += PAUSE.mul_f64(-(1.0 - rng.random::<f64>()).ln());
    }
    planned
}

fn any(rng: &mut StdRng) -> Fault {
    let process = rng.random_range(0..PROCESSES);
    let worker = APIS + rng.random_range(0..WORKERS);
    let need = if rng.random() { Need::Postgres } else { Need::Redis };
    match rng.random_range(0..100) {
        0..14 => Fault::Kill(worker),
        14..24 => Fault::Kill(process),
        24..30 => Fault::Terminate(process),
        30..44 => Fault::Freeze(worker),
        44..50 => Fault::Freeze(process),
        50..56 => Fault::FlushRedis,
        56..59 => Fault::RestartRedis,
        59..63 => Fault::RollBackRedis,
        63..66 => Fault::FreezeRedis,
        66..73 => Fault::RestartPostgres {
            is_immediate: rng.random(),
        },
        73..80 => Fault::Cut(process, need),
        80..87 => Fault::Hold(process, need),
        87..92 => Fault::Slow(process, need, Duration::from_millis(rng.random_range(5..400))),
        92..97 => Fault::Silence(process, need),
        _ => Fault::CutAll(need),
    }
}

fn lasts(rng: &mut StdRng, fault: Fault, length: Duration) -> Duration {
    let max = match fault {
        Fault::FlushRedis | Fault::Silence(..) => return Duration::ZERO,
        Fault::Freeze(_) => FROZEN_MAX,
        _ => AWAY_MAX,
    };
    // Mostly short; the square keeps the long ones rare.
    max.min(length / 3)
        .mul_f64(rng.random::<f64>().powi(2))
        .max(Duration::from_millis(200))
}

/// Whether two faults would be about the same thing at the same time.
fn collide(one: Fault, other: Fault) -> bool {
    let thing = |fault: Fault| match fault {
        Fault::Kill(n) | Fault::Terminate(n) | Fault::Freeze(n) => (0, n),
        Fault::FlushRedis | Fault::RestartRedis | Fault::RollBackRedis | Fault::FreezeRedis => (1, 0),
        Fault::RestartPostgres { .. } => (2, 0),
        Fault::Cut(n, need) | Fault::Hold(n, need) | Fault::Slow(n, need, _) | Fault::Silence(n, need) => {
            (3 + usize::from(need == Need::Redis), n)
        }
        Fault::CutAll(need) => (3 + usize::from(need == Need::Redis), usize::MAX),
    };
    let ((kind, which), (other_kind, other_which)) = (thing(one), thing(other));
    let is_everybody = which == usize::MAX || other_which == usize::MAX;
    kind == other_kind && (which == other_which || (kind >= 3 && is_everybody))
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(n) => write!(f, "SIGKILL of {}", name_of(*n)),
            Self::Terminate(n) => write!(f, "SIGTERM of {}", name_of(*n)),
            Self::Freeze(n) => write!(f, "SIGSTOP of {}", name_of(*n)),
            Self::FlushRedis => f.write_str("FLUSHALL"),
            Self::RestartRedis => f.write_str("Redis killed, back empty"),
            Self::RollBackRedis => f.write_str("Redis saved, and killed at the end, back with what it saved"),
            Self::FreezeRedis => f.write_str("SIGSTOP of Redis"),
            Self::RestartPostgres { is_immediate: true } => f.write_str("Postgres stopped at once"),
            Self::RestartPostgres { is_immediate: false } => f.write_str("Postgres stopped"),
            Self::Cut(n, need) => write!(f, "{} cut off from {need:?}", name_of(*n)),
            Self::Hold(n, need) => write!(f, "black hole between {} and {need:?}", name_of(*n)),
            Self::Slow(n, need, delay) => write!(f, "{} and {need:?} {delay:?} apart", name_of(*n)),
            Self::Silence(n, need) => write!(f, "connections of {} to {need:?} dead without a word", name_of(*n)),
            Self::CutAll(need) => write!(f, "everybody cut off from {need:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_follows_from_the_seed() {
        let length = Duration::from_mins(10);
        assert_eq!(plan(7, length, Kinds::All), plan(7, length, Kinds::All));
        assert_ne!(plan(7, length, Kinds::All), plan(8, length, Kinds::All));
        assert!(plan(7, length, Kinds::All).len() > 100);
    }

    #[test]
    fn everything_is_over_with_the_storm_and_no_two_faults_collide() {
        for seed in 0..200 {
            let length = Duration::from_mins(1);
            let planned = plan(seed, length, Kinds::All);
            for (index, one) in planned.iter().enumerate() {
                assert!(one.at + one.lasts <= length, "{one:?}");
                for other in &planned[index + 1..] {
                    let overlap = other.at <= one.at + one.lasts;
                    assert!(!overlap || !collide(one.fault, other.fault), "{one:?} {other:?}");
                }
            }
        }
    }
}
