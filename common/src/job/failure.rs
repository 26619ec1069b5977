//! Why an attempt failed: a closed set of codes and a message that its submitter may see.

use serde::{Deserialize, Serialize};

/// What happened, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The program ended with another exit code than 0, or by a signal of its own.
    NonzeroExit,
    /// It ran longer than its timeout.
    Timeout,
    /// The kernel killed it for its memory.
    OutOfMemory,
    /// It printed more than it may.
    OutputLimit,
    /// It ended non-zero with a writable mount out of blocks or inodes.
    DiskFull,
    /// Its files, packages or command cannot be used.
    InvalidInput,
    /// A package of `install` could not be installed.
    InstallFailed,
    /// The sandbox could not be started, or died.
    SandboxFailed,
    /// The model's provider refused, or did not answer.
    ModelFailed,
    /// The model's provider does not know the model, or the key is wrong.
    ModelRefused,
    /// The budget of tokens or money is used up.
    BudgetExceeded,
    /// The agent took its last step without an answer.
    MaxSteps,
    /// Too many workers died under it.
    Poisoned,
    /// The worker died under it.
    WorkerLost,
    /// Another job holds its concurrency key, and its strategy is `reject`.
    ConcurrencyLimit,
    /// A job of the group did not succeed, and its `on_failure` is `cancel`.
    ChildFailed,
    /// Its workspace could not be restored, or not be saved.
    WorkspaceFailed,
    /// A fault of Hothouse.
    Internal,
}

impl FailureCode {
    /// Every code, for the API's description.
    pub const ALL: [Self; 18] = [
        Self::NonzeroExit,
        Self::Timeout,
        Self::OutOfMemory,
        Self::OutputLimit,
        Self::DiskFull,
        Self::InvalidInput,
        Self::InstallFailed,
        Self::SandboxFailed,
        Self::ModelFailed,
        Self::ModelRefused,
        Self::BudgetExceeded,
        Self::MaxSteps,
        Self::Poisoned,
        Self::WorkerLost,
        Self::ConcurrencyLimit,
        Self::ChildFailed,
        Self::WorkspaceFailed,
        Self::Internal,
    ];

    /// The code as it is written in JSON and SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NonzeroExit => "nonzero_exit",
            Self::Timeout => "timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::OutputLimit => "output_limit",
            Self::DiskFull => "disk_full",
            Self::InvalidInput => "invalid_input",
            Self::InstallFailed => "install_failed",
            Self::SandboxFailed => "sandbox_failed",
            Self::ModelFailed => "model_failed",
            Self::ModelRefused => "model_refused",
            Self::BudgetExceeded => "budget_exceeded",
            Self::MaxSteps => "max_steps",
            Self::Poisoned => "poisoned",
            Self::WorkerLost => "worker_lost",
            Self::ConcurrencyLimit => "concurrency_limit",
            Self::ChildFailed => "child_failed",
            Self::WorkspaceFailed => "workspace_failed",
            Self::Internal => "internal",
        }
    }

    /// The code that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// Whether another attempt may end otherwise without the job being changed. What a program does is its own answer,
    /// and is not repeated unless the job's `retry_on` names the code.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::SandboxFailed | Self::ModelFailed | Self::WorkerLost | Self::WorkspaceFailed | Self::Internal
        )
    }
}

/// A failure as it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened, for programs.
    pub code: FailureCode,
    /// What happened, for people; nothing internal is in it.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_as_it_is_written() {
        for code in FailureCode::ALL {
            assert_eq!(FailureCode::parse(code.as_str()), Some(code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
