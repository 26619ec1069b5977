//! Making a sandbox as it was before its first program, as far as a job can have changed it, and proving it.
//!
//! Init has killed every program before this runs; what is left are files and what the kernel keeps without a process.
//! Files are deleted; for the rest, and for whatever cannot be deleted, the answer is no, and the sandbox is thrown away.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::parent_id;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::folder::{DEPTH_MAX, FOLDER, open_folder};
use super::report::Error;
use crate::sys::{self, Ipc};

/// Where the kernel shows message queues as files, where it does.
pub(crate) const QUEUES: &str = "/dev/mqueue";

/// What is known of sockets before anybody looks: see [`crate::tcp`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The counters of TCP stand where they stood when there was no connection.
    pub(crate) is_tcp_unmoved: bool,
    /// The kernel counts no socket of UDP, UDP-Lite or raw IP.
    pub(crate) has_no_others: bool,
}

/// Deletes everything, and answers with the first thing that is left.
pub(crate) fn reset<'a>(folders: impl IntoIterator<Item = &'a str>, known: Known) -> Result<(), Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for path in folders {
        let gone = |errno: Errno| Error::file(OsStr::new(path), errno);
        let folder = match open(path, FOLDER, Mode::empty()) {
            // Not everything is there in every sandbox.
            Err(Errno::ENOENT) => continue,
            opened => opened.map_err(gone)?,
        };
        own(&folder, mounted_mode(&mounts, path)).map_err(gone)?;
        clear(&folder, 0).map_err(gone)?;
        if !list(&folder).map_err(|e| Error::file(OsStr::new(path), e))?.is_empty() {
            return Err(left("files", path));
        }
        if sys::has_attributes(folder.as_fd()) {
            return Err(left("attributes", path));
        }
    }
    processes()?;
    ipc(&mounts)?;
    sockets(known)
}

fn left(what: &'static str, place: &str) -> Error {
    Error::Left {
        what,
        place: place.to_owned(),
    }
}

/// Gives a folder that is the job's the mode that it was mounted with.
fn own(folder: &OwnedFd, mode: u32) -> nix::Result<()> {
    if fstat(folder)?.st_uid != geteuid().as_raw() {
        return Ok(());
    }
    fchmod(folder, Mode::from_bits_truncate(mode))
}

/// The mode in a table of mounts; where it says nothing it is the file system's default.
fn mounted_mode(mounts: &str, path: &str) -> u32 {
    const DEFAULT: u32 = 0o1777;
    let of = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (place, options) = (fields.next()?, fields.nth(1)?);
        let mode = options.split(',').find_map(|option| option.strip_prefix("mode="));
        (place == path).then(|| {
            mode.and_then(|mode| u32::from_str_radix(mode, 8).ok())
                .unwrap_or(DEFAULT)
        })
    };
    mounts.lines().rev().find_map(of).unwrap_or(DEFAULT)
}

/// Deletes what is in a folder.
fn clear(folder: &OwnedFd, depth: usize) -> nix::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Errno::ELOOP);
    }
    for name in list(folder).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EIO as i32)))? {
        let name = name.as_c_str();
        let found = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFDIR {
            unlinkat(folder, name, UnlinkatFlags::NoRemoveDir)?;
            continue;
        }
        // One that the job closed to itself.
        fchmodat(folder, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
        clear(&open_folder(folder, name)?, depth + 1)?;
        unlinkat(folder, name, UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

fn list(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    // A descriptor of its own: the place in a folder belongs to the open file.
    let again = openat(folder, ".", FOLDER, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(again)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Nobody is there but init, this process and its supervisor, where it has one.
fn processes() -> Result<(), Error> {
    let known = [1, std::process::id(), parent_id()];
    let unreadable = |e: io::Error| Error::file(OsStr::new("/proc"), e);
    for entry in fs::read_dir("/proc").map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let pid = std::str::from_utf8(name.as_bytes())
            .ok()
            .and_then(|name| name.parse::<u32>().ok());
        if pid.is_some_and(|pid| !known.contains(&pid)) {
            return Err(left("a process", &format!("/proc/{}", name.to_string_lossy())));
        }
    }
    Ok(())
}

/// No shared memory, semaphore or queue is left, and a kernel that has them shows them: gVisor has them all and lists none.
fn ipc(mounts: &str) -> Result<(), Error> {
    const UNLISTED: &str = "something that this kernel does not list may be";
    for (table, has) in [
        ("shm", Ipc::SharedMemory),
        ("sem", Ipc::Semaphores),
        ("msg", Ipc::Messages),
    ] {
        let path = format!("/proc/sysvipc/{table}");
        match fs::read_to_string(&path) {
            Ok(text) if text.lines().count() > 1 => {
                return Err(left("shared memory, semaphores or queues", &path));
            }
            Err(_) if sys::has_ipc(has) => return Err(left(UNLISTED, &path)),
            // Without that part of the kernel there is no such file, and nothing of the kind.
            Ok(_) | Err(_) => {}
        }
    }
    if !shows_queues(mounts) && sys::has_ipc(Ipc::Queues) {
        return Err(left(UNLISTED, QUEUES));
    }
    Ok(())
}

/// Whether named queues are files, by a table of mounts.
fn shows_queues(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        (fields.next(), fields.next()) == (Some(QUEUES), Some("mqueue"))
    })
}

/// No connection is left, not even one that the kernel keeps for a while, and no socket but init's own.
fn sockets(known: Known) -> Result<(), Error> {
    const LISTENING: &str = "0A";
    const STREAMS: &[&str] = &["tcp", "tcp6"];
    const OTHERS: &[&str] = &["udp", "udp6", "udplite", "udplite6", "raw", "raw6"];
    let streams = if known.is_tcp_unmoved { &[] } else { STREAMS };
    let others = if known.has_no_others { &[] } else { OTHERS };
    for table in streams.iter().chain(others) {
        let path = format!("/proc/net/{table}");
        let text = fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
            // Whoever listens but init is a process, and there is none.
            if !(table.starts_with("tcp") && state == LISTENING && !local.is_empty()) {
                return Err(left("a socket", &path));
            }
        }
    }
    let named = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    if named.lines().skip(1).any(|line| line.split_whitespace().count() > 7) {
        return Err(left("a socket with a name", "/proc/net/unix"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_of_a_mount_is_that_of_the_last_on_its_path() {
        let mounts = "tmpfs /workspace tmpfs rw,mode=755,uid=1000 0 0\ntmpfs /tmp tmpfs rw,nosuid 0 0\n\
                      tmpfs /workspace tmpfs rw,nosuid,mode=770 0 0\n";
        assert_eq!(mounted_mode(mounts, "/workspace"), 0o770);
        assert_eq!(mounted_mode(mounts, "/tmp"), 0o1777);
        assert_eq!(mounted_mode(mounts, "/other"), 0o1777);
    }

    #[test]
    fn queues_are_shown_where_they_are_mounted() {
        assert!(shows_queues(
            "proc /proc proc rw 0 0\nmqueue /dev/mqueue mqueue rw,nosuid 0 0\n"
        ));
        assert!(!shows_queues(
            "tmpfs /dev/mqueue tmpfs rw 0 0\nnone /dev tmpfs rw,mode=0755 0 0\n"
        ));
    }
}
