//! Files of the workspace as a tar stream.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use hothouse_protocol::{FileEntry, FilesReport, Pack};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat};
use tar::{EntryType, Header};

use super::folder::{DEPTH_MAX, below_current, open_folder};
use super::report::Error;
use crate::whatever;

/// Packs; `report` counts what the archive holds, and lists it where only files are asked for: a tree may be large.
pub(super) fn pack(request: &Pack, output: impl Write, report: &mut FilesReport) -> Result<(), Error> {
    let globs = globs(&request.globs)?;
    let root = below_current(&request.root, false)?;
    let mut packer = Packer {
        archive: tar::Builder::new(output),
        names: HashMap::new(),
        globs,
        request,
        report,
    };
    packer.folder(&root, Path::new(""), 0)?;
    packer.archive.finish().map_err(Error::Archive)
}

fn globs(globs: &[String]) -> Result<GlobSet, Error> {
    let mut set = GlobSetBuilder::new();
    let refuse = |glob: &String, e: &globset::Error| Error::Glob {
        glob: glob.clone(),
        reason: e.kind().to_string(),
    };
    for glob in globs {
        let pattern = glob.strip_prefix("./").unwrap_or(glob);
        set.add(
            GlobBuilder::new(pattern)
                .literal_separator(true)
                .build()
                .map_err(|e| refuse(glob, &e))?,
        );
    }
    set.build().map_err(|e| refuse(&globs.join(" "), &e))
}

struct Packer<'a, W: Write> {
    archive: tar::Builder<W>,
    /// The first name of each file that has several, by device and inode.
    names: HashMap<(u64, u64), PathBuf>,
    globs: GlobSet,
    request: &'a Pack,
    report: &'a mut FilesReport,
}

impl<W: Write> Packer<'_, W> {
    /// Everything in a folder, by name, so that the same files make the same archive.
    fn folder(&mut self, folder: &OwnedFd, path: &Path, depth: usize) -> Result<(), Error> {
        let mut names = list(folder).map_err(|e| Error::file(path.as_os_str(), e))?;
        names.sort_unstable();
        for name in names {
            let path = path.join(&name);
            if path.as_os_str().len() > PATH_MAX {
                self.report.incomplete |= self.request.whole_tree;
                continue;
            }
            let Ok(found) = fstatat(folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else {
                continue;
            };
            match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
                // What is in it has one name more, and unpacking takes that too.
                SFlag::S_IFDIR if depth + 1 < DEPTH_MAX => {
                    if self.request.whole_tree && self.globs.is_match(&path) && self.has_room(0) {
                        // Without its time, which unpacking what is below would change.
                        let header = header(EntryType::Directory, found.st_mode, 0, 0);
                        self.append(header, &path, None, io::empty())?;
                    }
                    // One that vanished is left out.
                    let own = Closed::open(folder, &name, found.st_mode, OWN_FOLDER);
                    if let Ok(below) = open_folder(folder, name.as_os_str()) {
                        let packed = self.folder(&below, &path, depth + 1);
                        own.close(&below);
                        packed?;
                    }
                }
                // What cannot be saved is told, not left out.
                SFlag::S_IFDIR => self.report.incomplete |= self.request.whole_tree,
                SFlag::S_IFREG if self.globs.is_match(&path) => self.file(folder, &name, found.st_mode, &path)?,
                SFlag::S_IFLNK if self.request.whole_tree && self.globs.is_match(&path) && self.has_room(0) => {
                    if let Ok(target) = readlinkat(folder, name.as_os_str()) {
                        let header = header(EntryType::Symlink, 0o777, 0, 0);
                        self.append(header, &path, Some(&target), io::empty())?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, folder: &OwnedFd, name: &OsStr, mode: u32, path: &Path) -> Result<(), Error> {
        // Without blocking, because it may have become a fifo; without following, because it may have become a link.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let own = Closed::open(folder, name, mode, OWN_FILE);
        let file = match openat(folder, name, flags, Mode::empty()) {
            Ok(fd) => {
                own.close(&fd);
                File::from(fd)
            }
            Err(Errno::ENOENT | Errno::ELOOP | Errno::EACCES | Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(Error::file(path.as_os_str(), errno)),
        };
        let found = file.metadata().map_err(|e| Error::file(path.as_os_str(), e))?;
        if !found.is_file() {
            return Ok(());
        }
        let inode = (found.dev(), found.ino());
        let has_names = self.request.whole_tree && found.nlink() > 1;
        if let Some(first) = self.names.get(&inode).filter(|_| has_names).cloned() {
            return self.other_name(&found, path, &first);
        }
        if !self.has_room(found.len()) {
            return Ok(());
        }
        if has_names {
            self.names.insert(inode, path.to_owned());
        }
        let header = header(EntryType::Regular, found.mode(), found.len(), found.mtime());
        // What grows meanwhile is cut and what shrinks is filled: the archive must hold what its header says.
        self.append(header, path, None, file.chain(io::repeat(0)).take(found.len()))
    }

    /// A further name of a file that the archive holds already.
    fn other_name(&mut self, found: &Metadata, path: &Path, first: &Path) -> Result<(), Error> {
        if !self.has_room(0) {
            return Ok(());
        }
        let mut header = header(EntryType::Link, found.mode(), 0, found.mtime());
        // For those who list an archive: no content follows, so this field has no other meaning.
        if let Some(gnu) = header.as_gnu_mut() {
            let size = format!("{:011o}\0", found.len().min(OCTAL_MAX));
            gnu.realsize.copy_from_slice(size.as_bytes());
        }
        self.append(header, path, Some(first.as_os_str()), io::empty())
    }

    /// Whether another entry of this size is within the caps; if not, the archive is incomplete.
    fn has_room(&mut self, size: u64) -> bool {
        let fits = self.report.entries < self.request.entries_max
            && self.report.bytes.saturating_add(size) <= self.request.bytes_max;
        self.report.incomplete |= !fits;
        fits
    }

    fn append(
        &mut self,
        mut header: Header,
        path: &Path,
        link: Option<&OsStr>,
        content: impl Read,
    ) -> Result<(), Error> {
        let size = header.size().unwrap_or(0);
        let appended = match link {
            Some(target) => self.archive.append_link(&mut header, path, PathBuf::from(target)),
            None => self.archive.append_data(&mut header, path, content),
        };
        appended.map_err(|e| Error::file(path.as_os_str(), e))?;
        self.report.entries += 1;
        self.report.bytes += size;
        if !self.request.whole_tree {
            self.report.files.push(FileEntry {
                path: path.to_string_lossy().into_owned(),
                size,
            });
        }
        Ok(())
    }
}

/// The longest path, bytes: what the kernel takes whole, and every reader of an archive.
const PATH_MAX: usize = 4096;

/// The largest number that eleven octal digits hold.
const OCTAL_MAX: u64 = (1 << 33) - 1;

/// What of a mode its owner needs to read.
const OWN_FILE: Mode = Mode::S_IRUSR;
const OWN_FOLDER: Mode = Mode::S_IRUSR.union(Mode::S_IXUSR);

/// Something that its owner closed to itself, opened for as long as it is read: a `chmod 000` loses nobody a file.
struct Closed(Option<Mode>);

impl Closed {
    /// Gives `needed` to what has `mode`, if it lacks it.
    fn open(folder: &OwnedFd, name: &OsStr, mode: u32, needed: Mode) -> Self {
        let mode = Mode::from_bits_truncate(mode);
        if mode.contains(needed) {
            return Self(None);
        }
        // What is not the job's own stays closed, and whoever opens it is told so.
        let opened = fchmodat(folder, name, mode | needed, FchmodatFlags::FollowSymlink);
        Self(opened.ok().map(|()| mode))
    }

    /// Makes it as it was.
    fn close(self, it: &OwnedFd) {
        if let Some(mode) = self.0 {
            whatever(fchmod(it, mode));
        }
    }
}

fn header(kind: EntryType, mode: u32, size: u64, changed: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o777);
    header.set_size(size);
    header.set_mtime(u64::try_from(changed).unwrap_or(0));
    header
}

fn list(folder: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut folder = Dir::from_fd(folder.as_fd().try_clone_to_owned()?)?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}
