//! What `bwrap` and init say on their standard error: first where init runs, then only trouble.

use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;
use uuid::Uuid;

const NOTE_BYTES_MAX: usize = 16 * 1024;

/// The standard error of a sandbox.
#[derive(Debug)]
pub(super) struct Notes {
    stderr: ChildStderr,
    said: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    child_pid: i32,
}

impl Notes {
    pub(super) const fn new(stderr: ChildStderr) -> Self {
        Self {
            stderr,
            said: Vec::new(),
        }
    }

    /// The process id of init, outside.
    ///
    /// # Errors
    /// What was said instead.
    pub(super) async fn child_pid(&mut self) -> Result<Pid, String> {
        loop {
            let mut piece = [0; 1024];
            let len = self.stderr.read(&mut piece).await.map_err(|e| e.to_string())?;
            self.said.extend_from_slice(piece.get(..len).unwrap_or_default());
            if let Some(pid) = self.take_info() {
                return Ok(pid);
            }
            if len == 0 || self.said.len() > NOTE_BYTES_MAX {
                return Err(said(&self.said));
            }
        }
    }

    /// Logs what is said until the end, as far as it is not too much.
    pub(super) async fn log(mut self, sandbox: Uuid) {
        let mut budget = NOTE_BYTES_MAX;
        loop {
            if !self.said.is_empty() {
                tracing::warn!(%sandbox, said = said(&self.said), "the sandbox said");
                self.said.clear();
            }
            let mut piece = [0; 1024];
            match self.stderr.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    let kept = len.min(budget);
                    budget -= kept;
                    self.said.extend_from_slice(piece.get(..kept).unwrap_or_default());
                }
            }
        }
    }

    fn take_info(&mut self) -> Option<Pid> {
        let start = self.said.iter().position(|byte| *byte == b'{')?;
        let end = start + self.said.iter().skip(start).position(|byte| *byte == b'}')?;
        let info: Info = serde_json::from_slice(self.said.get(start..=end)?).ok()?;
        self.said.drain(start..=end);
        self.said = self.said.trim_ascii().to_vec();
        Some(Pid::from_raw(info.child_pid))
    }
}

/// Text for a person.
pub(super) fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    if text.is_empty() {
        "it said nothing".to_owned()
    } else {
        text.chars().take(2_000).collect()
    }
}
