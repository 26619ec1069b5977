//! Exit codes: how a job's end is told to a shell.
//!
//! A program that ran in a sandbox ends this process as it would have ended on this machine: its own code, or 128 plus
//! the signal that killed it. What only a job can have uses the codes that shells and `timeout` know.

use std::str::FromStr as _;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::client::{Job, JobState};

/// The job failed in a way that no program's exit code tells, or the command itself did.
pub(crate) const FAILED: u8 = 1;
/// The job's time was over, as `timeout` says it.
pub(crate) const TIMED_OUT: u8 = 124;
/// The job was cancelled, or the user left it with Ctrl-C: 128 + SIGINT.
pub(crate) const CANCELLED: u8 = 130;
/// The reader of the standard output is gone: 128 + SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;
/// What a shell reports for a process that was killed: 128 + SIGKILL.
const KILLED: u8 = 137;

/// The exit code that stands for the job's end.
pub(crate) fn of(job: &Job) -> u8 {
    let code = job.error.as_ref().map(|error| error.code.as_str());
    match (job.state, code) {
        (JobState::Succeeded, _) => own(&job.result).unwrap_or(0),
        (JobState::Cancelled, _) => CANCELLED,
        (_, Some("timeout")) => TIMED_OUT,
        (_, Some("out_of_memory")) => own(&job.result).filter(|code| *code != 0).unwrap_or(KILLED),
        _ => own(&job.result).filter(|code| *code != 0).unwrap_or(FAILED),
    }
}

/// What the program itself ended with, where it ran.
fn own(result: &Value) -> Option<u8> {
    if let Some(signal) = signal(result.get("signal")?) {
        return u8::try_from(signal).ok().and_then(|signal| signal.checked_add(128));
    }
    // A code outside of 0..=255 cannot be passed on; the lowest byte is what the system itself would keep.
    let code = result.get("exit_code")?.as_i64()?;
    code.to_le_bytes().first().copied()
}

/// A signal as its number, `9`, or its name, `SIGKILL` or `KILL`.
fn signal(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let name = value.as_str()?;
    let name = if name.starts_with("SIG") {
        name.to_owned()
    } else {
        format!("SIG{name}")
    };
    Signal::from_str(&name).ok().map(|signal| i64::from(signal as i32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn exit(state: &str, code: Option<&str>, result: &Value) -> u8 {
        let job = json!({"id": uuid::Uuid::nil(), "kind": "exec", "queue": "default", "priority": 5, "state": state,
                         "created_at": "2026-01-01T00:00:00Z", "result": result,
                         "error": code.map(|code| json!({"code": code, "message": ""}))});
        of(&serde_json::from_value(job).unwrap())
    }

    fn ended(exit_code: impl Into<Value>, signal: impl Into<Value>) -> Value {
        json!({"exit_code": exit_code.into(), "signal": signal.into(), "stdout": ""})
    }

    #[test]
    fn a_program_that_ran_passes_its_own_code_on() {
        assert_eq!(exit("succeeded", None, &ended(json!(0), Value::Null)), 0);
        assert_eq!(exit("failed", Some("nonzero_exit"), &ended(json!(3), Value::Null)), 3);
        assert_eq!(
            exit("failed", Some("nonzero_exit"), &ended(json!(255), Value::Null)),
            255
        );
    }

    #[test]
    fn a_signal_is_told_as_a_shell_tells_it() {
        for signal in [json!(11), json!("SIGSEGV"), json!("SEGV")] {
            assert_eq!(exit("failed", Some("nonzero_exit"), &ended(Value::Null, signal)), 139);
        }
        assert_eq!(
            exit("failed", Some("nonzero_exit"), &ended(Value::Null, json!("SIGWHAT"))),
            1
        );
    }

    #[test]
    fn a_timeout_wins_over_the_signal_that_carried_it_out() {
        assert_eq!(
            exit("failed", Some("timeout"), &ended(Value::Null, json!(9))),
            TIMED_OUT
        );
        assert_eq!(exit("cancelled", None, &ended(Value::Null, json!(9))), CANCELLED);
    }

    #[test]
    fn a_failure_is_never_told_as_success() {
        assert_eq!(
            exit("failed", Some("output_limit"), &ended(json!(0), Value::Null)),
            FAILED
        );
        assert_eq!(exit("failed", Some("disk_full"), &ended(json!(2), Value::Null)), 2);
        assert_eq!(exit("failed", Some("poisoned"), &Value::Null), FAILED);
        assert_eq!(exit("failed", Some("out_of_memory"), &Value::Null), KILLED);
        assert_eq!(exit("failed", None, &json!("text")), FAILED);
    }

    #[test]
    fn a_job_without_a_program_succeeds_with_zero() {
        assert_eq!(exit("succeeded", None, &Value::Null), 0);
        assert_eq!(exit("succeeded", None, &json!({})), 0);
    }
}
