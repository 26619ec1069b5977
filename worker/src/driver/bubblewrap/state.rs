//! Where the driver keeps its files: one folder for each worker process, by its number, beside each other.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};

const PREFIX: &str = "hothouse-bubblewrap-";

/// This process's folder in `all`.
pub fn state_folder(all: &Path) -> PathBuf {
    all.join(format!("{PREFIX}{}", std::process::id()))
}

/// Removes the folders of processes that are dead: a worker that was killed could not. Those of other users stay.
pub fn remove_left_behind(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let is_ours = entry
            .metadata()
            .is_ok_and(|data| data.is_dir() && data.uid() == geteuid().as_raw());
        let is_left = owner.is_some_and(|pid| pid > 0 && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH));
        if is_ours && is_left {
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::debug!(folder = %entry.path().display(), "removed what a dead worker left"),
                Err(error) => {
                    tracing::warn!(folder = %entry.path().display(), %error, "what a dead worker left stays");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_processes_go() {
        let all = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = all.path().join(format!("{PREFIX}{}", child.id()));
        child.wait().unwrap();
        let (own, other) = (state_folder(all.path()), all.path().join("hothouse-bubblewrap-notes"));
        for folder in [&dead, &own, &other] {
            fs::create_dir_all(folder.join("etc")).unwrap();
        }
        remove_left_behind(all.path());
        assert_eq!([&dead, &own, &other].map(|folder| folder.is_dir()), [false, true, true]);
    }
}
