//! The machine itself: system, kernel, size, disk, clock.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use nix::sys::statvfs::statvfs;

use super::Check;

const GIB: u64 = 1 << 30;
/// Below this the default image does not fit beside the databases.
const DISK_WARN: u64 = 6 * GIB;
/// Below this the databases have no room to work.
const DISK_MISSING: u64 = GIB;
const MEMORY_WARN: u64 = 2 * GIB;
/// `openat2`, by which files are unpacked safely inside a sandbox.
const KERNEL_MIN: (u32, u32) = (5, 6);

/// The distribution: the packages are Debian's.
pub(super) fn system() -> Check {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let name = Some(field("PRETTY_NAME"))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unknown".to_owned());
    let family = format!("{} {}", field("ID"), field("ID_LIKE"));
    if family.split_whitespace().any(|word| word == "debian") {
        Check::ok("system", name)
    } else {
        Check::warn(
            "system",
            name,
            "not Debian or Ubuntu: install the packages below with its own package manager",
        )
    }
}

/// The kernel's version.
pub(super) fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL_MIN {
        Check::ok("kernel", release)
    } else {
        Check::missing(
            "kernel",
            release,
            format!("Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1),
        )
    }
}

/// Processors and memory.
pub(super) fn size() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let memory: u64 = kib.unwrap_or(0) << 10;
    let found = format!("{cores} cores, {} of memory", gibibytes(memory));
    if memory >= MEMORY_WARN {
        Check::ok("size", found)
    } else {
        Check::warn("size", found, "a sandbox may use 1 GiB: at least 2 GiB are better")
    }
}

/// Room where the data folder is, or would be.
pub(super) fn disk(data_dir: &Path) -> Check {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let existing = absolute
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or_else(|| Path::new("/"));
    let Ok(room) = statvfs(existing) else {
        return Check::warn(
            "disk",
            format!("cannot read {}", existing.display()),
            "choose another with --data-dir",
        );
    };
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    let found = format!("{} free at {}", gibibytes(free), existing.display());
    if free < DISK_MISSING {
        Check::missing(
            "disk",
            found,
            "free at least 1 GiB, or choose another disk with --data-dir",
        )
    } else if free < DISK_WARN {
        Check::warn("disk", found, "the sandbox image and the databases want about 6 GiB")
    } else {
        Check::ok("disk", found)
    }
}

/// The clock: leases are timed by each server's own, schedules by the database's.
pub(super) fn clock() -> Check {
    let now = chrono::DateTime::<chrono::Utc>::from(SystemTime::now())
        .format("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let built = std::env::current_exe().and_then(|file| file.metadata()?.modified());
    if built.is_ok_and(|built| built > SystemTime::now()) {
        return Check::warn(
            "clock",
            now,
            "it is behind the time at which this program was built: set it",
        );
    }
    let synchronised = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output();
    match synchronised {
        Ok(output) if output.stdout.starts_with(b"no") => Check::warn(
            "clock",
            format!("{now}, not synchronised"),
            "turn it on: timedatectl set-ntp true",
        ),
        Ok(output) if output.stdout.starts_with(b"yes") => Check::ok("clock", format!("{now}, synchronised")),
        _ => Check::ok("clock", now),
    }
}

fn gibibytes(bytes: u64) -> String {
    // Tenths, without a float: a number of bytes has more digits than one can hold.
    let tenths = bytes / (GIB / 10);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_tenths() {
        assert_eq!(
            [0, GIB / 2, 24 * GIB].map(gibibytes),
            ["0.0 GiB", "0.5 GiB", "24.0 GiB"]
        );
    }
}
