//! What the kernel counted for the whole sandbox, when init can read it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use hothouse_protocol::{CgroupKind, Oom};

// A driver without cgroups in the sandbox's own `/sys` binds the directories here, read-only.
const BOUND: &str = "/.hothouse/cgroup";
const SYS: &str = "/sys/fs/cgroup";
// `cpu.stat` is the longest.
const TEXT_MAX: usize = 4096;

/// Where to read. The files stay open: they are read twice for each run, and their numbers are made anew each time.
#[derive(Debug)]
pub(crate) struct Cgroup {
    memory: Option<Memory>,
    cpu: Option<(CgroupKind, File)>,
}

#[derive(Debug)]
struct Memory {
    kind: CgroupKind,
    kills: File,
    peak: Option<File>,
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
            let mut opened = candidates.iter().map(|(kind, folder, file)| {
                let file = File::open(folder.join(file)).ok()?;
                file.metadata().ok()?.is_file().then(|| (*kind, folder.clone(), file))
            });
            opened.find_map(|found| found)
        };
        let (bound, sys) = (Path::new(BOUND), Path::new(SYS));
        let memory = first(&[
            (CgroupKind::V2, bound.join("unified"), "memory.events"),
            (CgroupKind::V1, bound.join("memory"), "memory.oom_control"),
            (CgroupKind::V2, sys.to_owned(), "memory.events"),
            (CgroupKind::V1, sys.join("memory"), "memory.oom_control"),
        ]);
        let cpu = first(&[
            (CgroupKind::V2, bound.join("unified"), "cpu.stat"),
            (CgroupKind::V1, bound.join("cpuacct"), "cpuacct.usage"),
            (CgroupKind::V2, sys.to_owned(), "cpu.stat"),
            (CgroupKind::V1, sys.join("cpuacct"), "cpuacct.usage"),
        ]);
        Self {
            memory: memory.map(|(kind, folder, kills)| {
                let peak = match kind {
                    CgroupKind::V2 => "memory.peak",
                    _ => "memory.max_usage_in_bytes",
                };
                let peak = File::open(folder.join(peak)).ok();
                Memory { kind, kills, peak }
            }),
            cpu: cpu.map(|(kind, _, file)| (kind, file)),
        }
    }

    /// Which version memory is counted by.
    pub(crate) fn kind(&self) -> CgroupKind {
        self.memory.as_ref().map_or(CgroupKind::None, |memory| memory.kind)
    }

    /// The counters now.
    pub(crate) fn read(&self) -> Counters {
        let memory = self.memory.as_ref();
        Counters {
            oom_kills: memory.and_then(|memory| field(&memory.kills, "oom_kill")),
            peak_bytes: memory.and_then(|memory| number(memory.peak.as_ref()?)),
            cpu_us: self.cpu.as_ref().and_then(|(kind, file)| match kind {
                CgroupKind::V2 => field(file, "usage_usec"),
                _ => number(file).map(|ns| ns / 1_000),
            }),
        }
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

fn number(file: &File) -> Option<u64> {
    text(file)?.trim().parse().ok()
}

fn field(file: &File, name: &str) -> Option<u64> {
    text(file)?
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// What is in a file now, which is one of a few short lines.
fn text(file: &File) -> Option<String> {
    let mut bytes = [0; TEXT_MAX];
    let len = file.read_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes.get(..len)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let path = folder.path().join("memory.events");
        fs::write(&path, "low 0\noom 3\noom_kill 2\noom_group_kill 9\n").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(field(&file, "oom_kill"), Some(2));
        fs::write(&path, "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        assert_eq!(
            field(&file, "oom_kill"),
            Some(1),
            "what is there now, also in a file that was read before"
        );
    }
}
