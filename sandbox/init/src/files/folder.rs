//! Folders that are opened one name at a time and never through a link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::report::Error;

/// How a folder is opened that is no job's to replace; any other with [`open_folder`].
pub(super) const FOLDER: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// The deepest path.
pub(super) const DEPTH_MAX: usize = 128;

/// The names of a relative path, or nothing when it climbs, begins at the root or is too deep.
pub(super) fn names(path: &OsStr) -> Option<Vec<&OsStr>> {
    let path = path.as_bytes();
    if path.starts_with(b"/") || path.contains(&0) {
        return None;
    }
    let names: Vec<_> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect();
    let is_below = names.len() <= DEPTH_MAX && !names.contains(&&b".."[..]);
    is_below.then(|| names.into_iter().map(OsStr::from_bytes).collect())
}

/// Opens a folder below the current one, making what is missing when `make` says so.
pub(super) fn below_current(path: &str, make: bool) -> Result<OwnedFd, Error> {
    let names = names(OsStr::new(path)).ok_or_else(|| Error::path(OsStr::new(path)))?;
    let current = open(".", FOLDER, Mode::empty()).map_err(|e| Error::file(OsStr::new("."), e))?;
    descend(current, &names, make).map_err(|e| Error::file(OsStr::new(path), e))
}

/// Opens the folder `names` below `folder`.
pub(super) fn descend(folder: OwnedFd, names: &[&OsStr], make: bool) -> io::Result<OwnedFd> {
    let mut folder = folder;
    for name in names {
        folder = match open_folder(&folder, *name) {
            Err(Errno::ENOENT) if make => {
                match mkdirat(&folder, *name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                open_folder(&folder, *name)?
            }
            opened => opened?,
        };
    }
    Ok(folder)
}

/// Opens a folder of a folder as itself: a link is `ENOTDIR`.
pub(super) fn open_folder<P: NixPath + ?Sized>(parent: impl AsFd, name: &P) -> nix::Result<OwnedFd> {
    // In two steps: gVisor follows a link of that name, unless it is only named (O_PATH) and not opened.
    let named = openat(parent, name, FOLDER.union(OFlag::O_PATH), Mode::empty())?;
    openat(&named, ".", FOLDER, Mode::empty())
}

/// Another descriptor for the same folder.
pub(super) fn again(folder: impl AsFd) -> io::Result<OwnedFd> {
    folder.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_folder_is_none() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("folder", place.path().join("link")).unwrap();
        let parent = open(place.path(), FOLDER, Mode::empty()).unwrap();
        assert!(open_folder(&parent, "folder").is_ok());
        assert_eq!(open_folder(&parent, "link").unwrap_err(), Errno::ENOTDIR);
    }

    #[test]
    fn only_paths_below_have_names() {
        let parts = |path: &'static str| names(OsStr::new(path)).map(|names| names.join(OsStr::new("|")));
        assert_eq!(parts("a/./b//c/").unwrap(), "a|b|c");
        assert_eq!(parts("").unwrap(), "");
        assert_eq!(parts("..a/b..").unwrap(), "..a|b..");
        for outside in ["/a", "..", "a/../b", "a/..", "../a", "a\0b"] {
            assert_eq!(parts(outside), None, "{outside:?}");
        }
        assert_eq!(names(OsStr::new(&"a/".repeat(DEPTH_MAX + 1))), None);
    }
}
