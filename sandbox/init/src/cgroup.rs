//! What the kernel counted for the whole sandbox, when init can read it.

use std::fs;
use std::path::{Path, PathBuf};

use hothouse_protocol::{CgroupKind, Oom};

// A driver without cgroups in the sandbox's own `/sys` binds the directories here, read-only.
const BOUND: &str = "/.hothouse/cgroup";
const SYS: &str = "/sys/fs/cgroup";

/// Where to read.
#[derive(Debug)]
pub(crate) struct Cgroup {
    memory: Option<(CgroupKind, PathBuf)>,
    cpu: Option<(CgroupKind, PathBuf)>,
}

/// The counters at one moment; none where there is nothing to read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    oom_kills: Option<u64>,
    peak_bytes: Option<u64>,
    cpu_us: Option<u64>,
}

impl Cgroup {
    /// Finds what is there.
    pub(crate) fn detect() -> Self {
        let first = |candidates: &[(CgroupKind, PathBuf, &str)]| {
            let found = candidates.iter().find(|(_, folder, file)| folder.join(file).is_file());
            found.map(|(kind, folder, _)| (*kind, folder.clone()))
        };
        let (bound, sys) = (Path::new(BOUND), Path::new(SYS));
        Self {
            memory: first(&[
                (CgroupKind::V2, bound.join("unified"), "memory.events"),
                (CgroupKind::V1, bound.join("memory"), "memory.oom_control"),
                (CgroupKind::V2, sys.to_owned(), "memory.events"),
                (CgroupKind::V1, sys.join("memory"), "memory.oom_control"),
            ]),
            cpu: first(&[
                (CgroupKind::V2, bound.join("unified"), "cpu.stat"),
                (CgroupKind::V1, bound.join("cpuacct"), "cpuacct.usage"),
                (CgroupKind::V2, sys.to_owned(), "cpu.stat"),
                (CgroupKind::V1, sys.join("cpuacct"), "cpuacct.usage"),
            ]),
        }
    }

    /// Which version memory is counted by.
    pub(crate) fn kind(&self) -> CgroupKind {
        self.memory.as_ref().map_or(CgroupKind::None, |(kind, _)| *kind)
    }

    /// The counters now.
    pub(crate) fn read(&self) -> Counters {
        let mut counters = Counters::default();
        match &self.memory {
            Some((CgroupKind::V2, folder)) => {
                counters.oom_kills = field(&folder.join("memory.events"), "oom_kill");
                counters.peak_bytes = number(&folder.join("memory.peak"));
            }
            Some((_, folder)) => {
                counters.oom_kills = field(&folder.join("memory.oom_control"), "oom_kill");
                counters.peak_bytes = number(&folder.join("memory.max_usage_in_bytes"));
            }
            None => {}
        }
        counters.cpu_us = match &self.cpu {
            Some((CgroupKind::V2, folder)) => field(&folder.join("cpu.stat"), "usage_usec"),
            Some((_, folder)) => number(&folder.join("cpuacct.usage")).map(|ns| ns / 1_000),
            None => None,
        };
        counters
    }
}

impl Counters {
    /// Whether a process of a run was killed for memory between `self` and `after`. `was_alone`: no other run shared
    /// the time. `was_killed`: the run's own process died of SIGKILL that init did not send.
    pub(crate) fn oom_until(&self, after: &Self, was_alone: bool, was_killed: bool) -> Oom {
        match (self.oom_kills, after.oom_kills) {
            (Some(before), Some(after)) if after <= before => Oom::No,
            (Some(_), Some(_)) if was_alone || was_killed => Oom::Yes,
            (Some(_), Some(_)) => Oom::Unknown,
            _ if was_killed => Oom::Unknown,
            _ => Oom::No,
        }
    }

    /// The most memory that the sandbox ever used, in bytes.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        self.peak_bytes
    }

    /// The sandbox's peak memory, when it rose between `self` and `after`.
    pub(crate) fn raised_peak(&self, after: &Self) -> Option<u64> {
        let peak = after.peak_bytes?;
        self.peak_bytes.is_none_or(|before| peak > before).then_some(peak)
    }

    /// Processor time used between `self` and `after`, in microseconds.
    pub(crate) fn cpu_us_until(&self, after: &Self) -> Option<u64> {
        Some(after.cpu_us?.saturating_sub(self.cpu_us?))
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kills(oom_kills: Option<u64>) -> Counters {
        Counters {
            oom_kills,
            ..Counters::default()
        }
    }

    #[test]
    fn an_oom_kill_is_told_only_when_it_is_known_whose_it_was() {
        let (zero, one, blind) = (kills(Some(0)), kills(Some(1)), kills(None));
        assert_eq!(zero.oom_until(&zero, true, true), Oom::No);
        assert_eq!(zero.oom_until(&one, true, false), Oom::Yes);
        assert_eq!(zero.oom_until(&one, false, true), Oom::Yes);
        assert_eq!(zero.oom_until(&one, false, false), Oom::Unknown);
        assert_eq!(blind.oom_until(&blind, true, true), Oom::Unknown);
        assert_eq!(blind.oom_until(&blind, true, false), Oom::No);
    }

    #[test]
    fn fields_of_both_versions_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 9\n").unwrap();
        assert_eq!(field(&file, "oom_kill"), Some(2));
        fs::write(&file, "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        assert_eq!(field(&file, "oom_kill"), Some(1));
    }
}
