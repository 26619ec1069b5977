//! Sandboxes whose worker, engine, init, image or disk goes away: each job ends as it should, for a reason that a person
//! understands, and nothing stays behind. Real processes, and a Docker engine of each test's own.
//!
//! `make faults` runs them at full size and holds the goals to the letter; in `make test` the machine has other work.

mod engines;
mod load;
mod workers;

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{self, Setup};

/// Whether the sizes and goals are those of `make faults`.
fn is_full() -> bool {
    cluster::optional("HOTHOUSE_FAULTS").is_some()
}

/// What a fault may cost; four times that beside the work of other tests.
#[track_caller]
fn within(what: &str, took: Duration, goal: Duration) {
    report(&format!(
        "{what}: {:.3} s (goal {:.3} s)",
        took.as_secs_f64(),
        goal.as_secs_f64()
    ));
    let limit = if is_full() { goal } else { 4 * goal };
    assert!(took <= limit, "{what}: {took:?}");
}

#[expect(clippy::print_stderr, reason = "measurements of a test")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// One worker with so many sandboxes at most, of which so many are warm.
fn one_worker(max: usize, warm: usize, settings: &'static [(&'static str, &'static str)]) -> Setup {
    Setup {
        workers: 1,
        sandboxes_max: max,
        warm,
        settings,
        ..Setup::default()
    }
}

/// Prints `begin`, works for so many fifths of a second, and prints `end`; tried so often.
fn script(fifths: u32, tries: u32) -> Value {
    let code = format!("echo begin; for i in $(seq {fifths}); do sleep 0.2; done; echo end");
    json!({
        "kind": "exec", "timeout": "120s", "max_attempts": tries, "backoff": {"initial": "200ms", "factor": 1},
        "input": {"command": ["sh", "-c", code]},
    })
}
