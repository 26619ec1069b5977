//! A run that rests: its program is stopped, and nothing else of it is left.

use hothouse_protocol::Rested;
use nix::unistd::Pid;

use super::Run;
use crate::cgroup::Cgroup;
use crate::supervisor::Command;

impl Run {
    /// Stops the program and kills everything that it began.
    pub(crate) fn rest(&mut self) {
        self.resting = None;
        self.command(Command::Rest);
    }

    /// The processes that may be there while it rests; none while it does not.
    pub(crate) fn at_rest(&self) -> Option<[Pid; 2]> {
        self.resting.map(|_others| self.ends.processes())
    }

    /// What there is to say of its rest; `strays` were killed besides. What it uses is counted anew from here on.
    pub(crate) fn rested(&mut self, strays: u32, cgroup: &Cgroup) -> Rested {
        let others = self.resting.take().unwrap_or(0);
        let now = cgroup.read();
        let before = std::mem::replace(&mut self.before, now);
        Rested {
            is_alive: true,
            others: others.saturating_add(strays),
            cpu_us: before.cpu_us_until(&now).unwrap_or(0),
            memory_peak_bytes: now.peak_bytes().unwrap_or(0),
        }
    }
}
