//! Where the driver keeps its files: one folder for each worker process, by its number, beside each other.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};

const PREFIX: &str = "hothouse-bubblewrap-";

/// This process's folder in `all`.
pub fn state_folder(all: &Path) -> PathBuf {
    all.join(format!("{PREFIX}{}", std::process::id()))
}

/// Makes the folder, for nobody else. Beside it others may write, and know its name beforehand: what is there already is
/// taken only when it is a folder of this user's that nobody else can write to.
pub(super) fn make(state: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(state) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(state)?;
            let is_ours = found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0;
            if is_ours { Ok(()) } else { Err(error) }
        }
        made => made,
    }
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
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn what_somebody_else_may_have_put_at_its_place_is_not_written_to() {
        let all = tempfile::tempdir().unwrap();
        let own = all.path().join("own");
        for _ in 0..2 {
            make(&own).unwrap();
        }
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);

        let (link, open) = (all.path().join("link"), all.path().join("open"));
        symlink(&own, &link).unwrap();
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let mut others = vec![link, open];
        if geteuid().is_root() {
            let foreign = all.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(60_998), None).unwrap();
            others.push(foreign);
        }
        for other in others {
            assert_eq!(
                make(&other).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists,
                "{other:?}"
            );
        }
    }

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
