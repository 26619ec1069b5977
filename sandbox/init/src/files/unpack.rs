//! A tar stream into a folder of the workspace.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt};

use hothouse_protocol::{FilesReport, Unpack};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use tar::{Entry, EntryType};

use super::folder::{again, below_current, descend, names};
use super::report::Error;

// Neither setuid nor setgid nor sticky.
const MODE_BITS: u32 = 0o777;

/// Unpacks; `report` counts what was written, also when it stops early.
pub(super) fn unpack(request: &Unpack, input: impl Read, report: &mut FilesReport) -> Result<(), Error> {
    let into = Destination {
        folder: below_current(&request.dest, true)?,
        outside_links: request.outside_links,
    };
    let mut archive = tar::Archive::new(input);
    // Modes of folders come last: one that cannot be written to may have content.
    let mut folder_modes: Vec<(OsString, u32)> = Vec::new();
    for entry in archive.entries().map_err(Error::Archive)? {
        let mut entry = entry.map_err(Error::Archive)?;
        report.entries += 1;
        if report.entries > request.entries_max {
            return Err(Error::Entries {
                max: request.entries_max,
            });
        }
        if entry.size() > request.bytes_max - report.bytes {
            return Err(Error::Bytes { max: request.bytes_max });
        }
        let path = OsString::from_vec(entry.path_bytes().into_owned());
        if entry.header().entry_type() == EntryType::Directory {
            folder_modes.push((path.clone(), mode(&entry)));
        }
        report.bytes += into.put(&path, &mut entry)?;
    }
    for (path, mode) in folder_modes.into_iter().rev() {
        into.set_folder_mode(&path, mode)?;
    }
    // What follows the end of the archive is read too: a closed pipe would look like a failure to the sender.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(Error::Archive)?;
    Ok(())
}

struct Destination {
    folder: OwnedFd,
    outside_links: bool,
}

impl Destination {
    /// Writes one entry; the bytes of its content.
    fn put(&self, path: &OsStr, entry: &mut Entry<'_, impl Read>) -> Result<u64, Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(0);
        }
        let names = names(path).ok_or_else(|| Error::path(path))?;
        let Some((name, parents)) = names.split_last() else {
            // The folder itself, as archives of "." begin.
            return if kind == EntryType::Directory {
                Ok(0)
            } else {
                Err(Error::path(path))
            };
        };
        let parent = again(&self.folder).and_then(|folder| descend(folder, parents, true));
        let parent = parent.map_err(|e| Error::file(path, e))?;
        let written = match kind {
            EntryType::Directory => make_folder(&parent, name),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => write_file(&parent, name, entry),
            EntryType::Symlink => {
                let target = self.link_target(parents.len(), path, entry)?;
                replace(&parent, name, || symlinkat(target.as_os_str(), &parent, *name))
            }
            EntryType::Link => {
                let (folder, target) = self.linked_file(path, entry)?;
                replace(&parent, name, || {
                    linkat(&folder, target.as_os_str(), &parent, *name, AtFlags::empty())
                })
            }
            other => {
                let kind = format!("{other:?}").to_lowercase();
                return Err(Error::Kind {
                    path: path.to_string_lossy().into_owned(),
                    kind,
                });
            }
        };
        written.map_err(|e| Error::file(path, e))
    }

    fn link_target(&self, depth: usize, path: &OsStr, entry: &Entry<'_, impl Read>) -> Result<OsString, Error> {
        let target = link_name(entry);
        let may_point_there = self.outside_links || stays_below(depth, &target);
        if target.is_empty() || !may_point_there {
            Err(Error::link(path))
        } else {
            Ok(target)
        }
    }

    /// The folder and the name of the file that a hard link names.
    fn linked_file(&self, path: &OsStr, entry: &Entry<'_, impl Read>) -> Result<(OwnedFd, OsString), Error> {
        let target = link_name(entry);
        let names = names(&target).ok_or_else(|| Error::link(path))?;
        let (name, parents) = names.split_last().ok_or_else(|| Error::link(path))?;
        let folder = again(&self.folder).and_then(|folder| descend(folder, parents, false));
        Ok((folder.map_err(|e| Error::file(&target, e))?, (*name).to_owned()))
    }

    fn set_folder_mode(&self, path: &OsStr, mode: u32) -> Result<(), Error> {
        let Some(names) = names(path).filter(|names| !names.is_empty()) else {
            return Ok(());
        };
        let folder = again(&self.folder).and_then(|folder| descend(folder, &names, false));
        let set = folder.and_then(|folder| File::from(folder).set_permissions(Permissions::from_mode(mode)));
        set.map_err(|e| Error::file(path, e))
    }
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> io::Result<u64> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) => Ok(0),
        // Whether what is there is a folder shows when it is opened as one; a link is not.
        Err(Errno::EEXIST) => descend(again(parent)?, &[name], false).map(|_folder| 0),
        Err(errno) => Err(errno.into()),
    }
}

/// A new file for writing, in the place of a file or link of that name.
pub(super) fn create_file(parent: &OwnedFd, name: &OsStr) -> io::Result<File> {
    // Exclusive: what is there is replaced, never written through.
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let create = || openat(parent, name, flags, Mode::from_bits_truncate(0o600));
    Ok(File::from(match create() {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            create()?
        }
        created => created?,
    }))
}

fn write_file(parent: &OwnedFd, name: &OsStr, entry: &mut Entry<'_, impl Read>) -> io::Result<u64> {
    let mut file = create_file(parent, name)?;
    let size = entry.size();
    let written = copy(&mut entry.take(size), &mut file)?;
    if written < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    file.set_permissions(Permissions::from_mode(mode(entry)))?;
    let changed = entry
        .header()
        .mtime()
        .ok()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .unwrap_or(0);
    let changed = TimeSpec::new(changed, 0);
    futimens(&file, &changed, &changed)?;
    Ok(written)
}

/// Copies to an empty file, and leaves out what is zero: a file with holes takes no more room than before.
fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    const PIECE: usize = 64 * 1024;
    const BLOCK: usize = 8 * 1024;
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let is_zero = |block: &[u8]| ZEROS.starts_with(block);
    let (mut piece, mut at, mut ends_in_hole) = (vec![0; PIECE], 0, false);
    loop {
        let read = fill(from, &mut piece)?;
        let data = piece.get(..read).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        let has_holes = data.chunks(BLOCK).any(is_zero);
        for block in data.chunks(if has_holes { BLOCK } else { PIECE }) {
            ends_in_hole = is_zero(block);
            if !ends_in_hole {
                to.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
    }
    if ends_in_hole {
        to.set_len(at)?;
    }
    Ok(at)
}

/// Reads until the buffer is full or nothing more comes; how much.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Makes a link, in the place of a file or link of that name.
fn replace(parent: &OwnedFd, name: &OsStr, make: impl Fn() -> nix::Result<()>) -> io::Result<u64> {
    match make() {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            make()?;
        }
        made => made?,
    }
    Ok(0)
}

fn mode(entry: &Entry<'_, impl Read>) -> u32 {
    entry.header().mode().unwrap_or(0o644) & MODE_BITS
}

fn link_name(entry: &Entry<'_, impl Read>) -> OsString {
    OsString::from_vec(entry.link_name_bytes().unwrap_or_default().into_owned())
}

/// Whether a link in a folder `depth` below the root of the archive points to something below that root.
fn stays_below(depth: usize, target: &OsStr) -> bool {
    let mut depth = depth;
    !target.as_bytes().starts_with(b"/")
        && target.as_bytes().split(|byte| *byte == b'/').all(|name| match name {
            b"" | b"." => true,
            b".." => {
                let climbs = depth > 0;
                depth = depth.saturating_sub(1);
                climbs
            }
            _ => {
                depth += 1;
                true
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_move_about_inside_and_not_leave() {
        for (depth, target) in [(0, "a"), (1, "../a"), (2, "../../a/../b"), (0, "./a/..")] {
            assert!(stays_below(depth, OsStr::new(target)), "{target} at {depth}");
        }
        for (depth, target) in [
            (0, ".."),
            (0, "/etc/passwd"),
            (1, "../.."),
            (1, "a/../../../b"),
            (1, "../../a"),
        ] {
            assert!(!stays_below(depth, OsStr::new(target)), "{target} at {depth}");
        }
    }
}
