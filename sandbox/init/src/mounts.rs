//! Where programs of the sandbox can write, and whether there is room.

use std::fs;
use std::path::Path;

use hothouse_protocol::FullMount;
use nix::sys::statvfs::statvfs;

// A program that met "no space left" leaves at most a few blocks behind: what it tried to write did not fit.
const BLOCKS_LEFT: u64 = 16;

const WITHOUT_FILES: [&str; 9] = [
    "proc",
    "sysfs",
    "devpts",
    "devtmpfs",
    "cgroup",
    "cgroup2",
    "mqueue",
    "securityfs",
    "debugfs",
];

/// The writable mounts of this mount namespace.
pub(crate) fn writable() -> Vec<String> {
    parse(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
        .into_iter()
        .filter(|path| Path::new(path).is_dir())
        .collect()
}

/// Those of `mounts` that have no room.
pub(crate) fn full(mounts: &[String]) -> Vec<FullMount> {
    mounts.iter().filter_map(|path| look(path)).collect()
}

fn look(path: &str) -> Option<FullMount> {
    let found = statvfs(path).ok()?;
    // A file system without such a limit says that it has none in all.
    let blocks = found.blocks() > 0 && found.blocks_available() < BLOCKS_LEFT;
    let inodes = found.files() > 0 && found.files_available() == 0;
    (blocks || inodes).then(|| FullMount {
        path: path.to_owned(),
        blocks,
        inodes,
    })
}

fn parse(mounts: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = unescape(path);
        let is_system = path == "/dev" || path.starts_with("/proc/") || path.starts_with("/sys/");
        // A later mount on the same path hides the earlier.
        found.retain(|earlier| *earlier != path);
        if options.split(',').any(|option| option == "rw") && !is_system && !WITHOUT_FILES.contains(&kind) {
            found.push(path);
        }
    }
    found
}

fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_programs_can_fill_is_looked_at() {
        let mounts = "\
overlay / overlay ro,relatime 0 0
proc /proc proc rw,nosuid 0 0
tmpfs /dev tmpfs rw,nosuid 0 0
shm /dev/shm tmpfs rw,nosuid 0 0
devpts /dev/pts devpts rw 0 0
tmpfs /workspace tmpfs rw,nosuid,nodev,size=524288k 0 0
tmpfs /tmp tmpfs rw,nosuid 0 0
tmpfs /with\\040space tmpfs rw 0 0
tmpfs /tmp tmpfs ro,nosuid 0 0
";
        assert_eq!(parse(mounts), ["/dev/shm", "/workspace", "/with space"]);
    }
}
