//! Folders that are opened one name at a time and never through a link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::report::Error;

/// How a folder is opened: as itself.
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
        folder = match openat(&folder, *name, FOLDER, Mode::empty()) {
            Err(Errno::ENOENT) if make => {
                match mkdirat(&folder, *name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                openat(&folder, *name, FOLDER, Mode::empty())?
            }
            opened => opened?,
        };
    }
    Ok(folder)
}

/// Another descriptor for the same folder.
pub(super) fn again(folder: impl AsFd) -> io::Result<OwnedFd> {
    folder.as_fd().try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
