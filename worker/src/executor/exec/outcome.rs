//! What a program's end means for its job: pure.

use common::job::decision::Outcome;
use common::job::{Failure, FailureCode, Usage};
use serde::Serialize;

use super::super::Ended;
use super::artifacts::Artifact;
use super::output::Collected;
use crate::sandbox::{Exit, Oom};

#[derive(Serialize)]
struct Answer<'a> {
    exit_code: Option<i32>,
    signal: Option<i32>,
    stdout: &'a str,
    stderr: &'a str,
    stdout_truncated: bool,
    stderr_truncated: bool,
    duration_ms: u64,
    artifacts: Vec<Artifact>,
}

/// The attempt's end: the result is there whether the program did well or not, and whether its artifacts were kept. A program
/// that failed says why by itself.
pub(super) fn ended(
    exit: &Exit,
    collected: &Collected,
    artifacts: Result<Vec<Artifact>, Failure>,
    usage: Usage,
    timeout_ms: u64,
) -> Ended {
    let (artifacts, not_kept) = match artifacts {
        Ok(artifacts) => (artifacts, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    let answer = Answer {
        exit_code: exit.code,
        signal: exit.signal,
        stdout: &collected.stdout.text,
        stderr: &collected.stderr.text,
        stdout_truncated: exit.stdout.is_truncated(),
        stderr_truncated: exit.stderr.is_truncated(),
        duration_ms: u64::try_from(exit.wall.as_millis()).unwrap_or(u64::MAX),
        artifacts,
    };
    let result = serde_json::to_vec(&answer).expect("strings and numbers are JSON");
    let outcome = match failure(exit, timeout_ms).or(not_kept) {
        None => Outcome::Succeeded,
        Some(failure) => Outcome::Failed {
            failure,
            retry_after: None,
        },
    };
    Ended {
        result: Some(result),
        usage,
        ..Ended::with(outcome)
    }
}

/// The failure that a program's end means; none when it did well.
pub(in super::super) fn failure(exit: &Exit, timeout_ms: u64) -> Option<Failure> {
    let (code, message) = if exit.output_limit {
        (
            FailureCode::OutputLimit,
            "it printed more than 64 MiB and was killed".to_owned(),
        )
    } else if exit.timed_out {
        (
            FailureCode::Timeout,
            format!("it ran longer than {timeout_ms} ms and was killed"),
        )
    } else if exit.is_success() {
        return None;
    } else if exit.oom == Oom::Yes {
        (FailureCode::OutOfMemory, "it used more memory than it may".to_owned())
    } else if exit.disk_full {
        let full: Vec<&str> = exit.full_mounts.iter().map(|mount| mount.path.as_str()).collect();
        (
            FailureCode::DiskFull,
            format!("it ended with no room left on {}", full.join(" and ")),
        )
    } else {
        let message = match (exit.code, exit.signal) {
            (Some(code), _) => format!("it ended with exit code {code}"),
            (None, Some(signal)) => format!("it was killed by signal {signal}"),
            (None, None) => "it ended in an unknown way".to_owned(),
        };
        (FailureCode::NonzeroExit, message)
    };
    Some(Failure::new(code, message))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::StreamSummary;

    fn exit(code: Option<i32>) -> Exit {
        Exit {
            code,
            signal: None,
            timed_out: false,
            output_limit: false,
            killed: false,
            oom: Oom::No,
            disk_full: false,
            full_mounts: Vec::new(),
            cpu: Duration::ZERO,
            memory_peak_bytes: 0,
            wall: Duration::from_millis(12),
            stdout: StreamSummary::default(),
            stderr: StreamSummary::default(),
        }
    }

    fn code(exit: &Exit) -> Option<FailureCode> {
        failure(exit, 1000).map(|failure| failure.code)
    }

    #[test]
    fn only_an_exit_with_0_is_a_success() {
        assert_eq!(code(&exit(Some(0))), None);
        assert_eq!(code(&exit(Some(3))), Some(FailureCode::NonzeroExit));
        assert_eq!(
            code(&Exit {
                signal: Some(9),
                ..exit(None)
            }),
            Some(FailureCode::NonzeroExit)
        );
    }

    #[test]
    fn the_reason_that_came_from_outside_comes_first() {
        let all = Exit {
            timed_out: true,
            output_limit: true,
            oom: Oom::Yes,
            disk_full: true,
            ..exit(None)
        };
        assert_eq!(code(&all), Some(FailureCode::OutputLimit));
        assert_eq!(
            code(&Exit {
                output_limit: false,
                ..all.clone()
            }),
            Some(FailureCode::Timeout)
        );
        let ended = Exit {
            output_limit: false,
            timed_out: false,
            ..all
        };
        assert_eq!(code(&ended), Some(FailureCode::OutOfMemory));
        assert_eq!(
            code(&Exit {
                oom: Oom::Unknown,
                ..ended
            }),
            Some(FailureCode::DiskFull)
        );
    }

    #[test]
    fn artifacts_that_were_not_kept_fail_a_program_that_did_well_and_take_nobody_its_result() {
        let lost = || Err(Failure::new(FailureCode::Internal, "an artifact could not be stored"));
        for (program, code) in [(0, FailureCode::Internal), (3, FailureCode::NonzeroExit)] {
            let ended = ended(
                &exit(Some(program)),
                &Collected::default(),
                lost(),
                Usage::default(),
                1000,
            );
            assert!(matches!(&ended.outcome, Outcome::Failed { failure, .. } if failure.code == code));
            let result: serde_json::Value = serde_json::from_slice(&ended.result.unwrap()).unwrap();
            assert_eq!(result["exit_code"], program);
            assert_eq!(result["artifacts"], serde_json::json!([]));
        }
    }

    #[test]
    fn a_full_disk_that_did_not_hurt_is_a_success() {
        assert_eq!(
            code(&Exit {
                disk_full: true,
                oom: Oom::Yes,
                ..exit(Some(0))
            }),
            None
        );
    }
}
