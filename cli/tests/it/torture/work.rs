//! What the clients ask for.

use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::history::Expects;

/// A job to submit.
pub(super) struct Work {
    pub(super) token: String,
    pub(super) body: Value,
    pub(super) is_program: bool,
    pub(super) expects: Expects,
    pub(super) limit: Option<(String, usize)>,
}

/// Concurrency keys and how many of each may run.
const KEYS: [(&str, usize); 3] = [("one", 1), ("two", 2), ("five", 5)];

/// Any job: nothing, or a program, with any of what a submission may say.
pub(super) fn any(rng: &mut StdRng, token: String, is_program: bool) -> Work {
    // What waits for one place waits for the sum of these: the storm is to be over some day.
    let has_limit = rng.random_bool(0.25);
    let (mut body, expects) = if is_program {
        program(rng, &token, if has_limit { 8 } else { 120 })
    } else {
        (json!({"kind": "noop"}), Expects::Succeeds)
    };
    body["metadata"] = json!({"token": token});
    body["priority"] = json!(rng.random_range(0..10));
    if rng.random_bool(0.15) {
        body["delay"] = json!(format!("{}ms", rng.random_range(50..3_000)));
    }
    let limit = has_limit.then(|| {
        let (key, limit) = KEYS[rng.random_range(0..KEYS.len())];
        body["concurrency"] = json!({"key": key, "limit": limit});
        (key.to_owned(), limit)
    });
    Work {
        token,
        body,
        is_program,
        expects,
        limit,
    }
}

/// A program that prints lines with the machine's own clock for so many tenths of a second. Its token is in its command
/// line, where a witness sees it.
fn program(rng: &mut StdRng, token: &str, tenths_max: u32) -> (Value, Expects) {
    let tell = |word: &str| format!("read -r up _ </proc/uptime; echo {word} $up");
    let tenths = match rng.random_range(0..10) {
        0..6 => rng.random_range(1..10),
        6..9 => rng.random_range(10..40),
        _ => rng.random_range(40..120),
    };
    let tenths = tenths.min(tenths_max);
    let body = format!(
        "{}; for i in $(seq {tenths}); do sleep 0.1; {}; done",
        tell("begin"),
        tell("tick")
    );
    let job =
        |code: String| json!({"kind": "exec", "timeout": "60s", "input": {"command": ["bash", "-c", code, token]}});
    let often = json!({"initial": "200ms", "factor": 1.5, "max": "1s"});
    match rng.random_range(0..10) {
        0 => (job(format!("{body}; exit 3")), Expects::Fails("nonzero_exit")),
        1 => {
            let mut job = job(format!("{body}; exit 3"));
            job["retry_on"] = json!(["nonzero_exit"]);
            job["backoff"] = often;
            (job, Expects::Fails("nonzero_exit"))
        }
        2 => {
            let mut job = job(format!("{body}; [ $((RANDOM % 3)) = 0 ] || exit 3; {}", tell("end")));
            job["retry_on"] = json!(["nonzero_exit"]);
            job["max_attempts"] = json!(4);
            job["backoff"] = often;
            (job, Expects::Either("nonzero_exit"))
        }
        3 => {
            let mut job = job(format!("{}; sleep 100", tell("begin")));
            job["timeout"] = json!("1s");
            (job, Expects::Fails("timeout"))
        }
        _ => (job(format!("{body}; {}", tell("end"))), Expects::Succeeds),
    }
}
