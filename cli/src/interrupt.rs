//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second leaves at once.
//!
//! `timeout` and many wrappers pass a signal on that the whole process group has got already, so two that come within
//! a moment are one.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// No person presses Ctrl-C twice so fast.
const ECHO: Duration = Duration::from_millis(300);

/// Both signals; from its making on, neither ends the process by itself.
#[derive(Debug)]
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
    last: Option<Instant>,
}

impl Interrupts {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            last: None,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.int.recv() => {}
                _ = self.term.recv() => {}
            }
            if self.last.is_none_or(|last| last.elapsed() > ECHO) {
                self.last = Some(Instant::now());
                return;
            }
        }
    }
}
