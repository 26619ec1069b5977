//! Small files that come with a program's request.

use std::ffi::{CStr, OsStr};
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use hothouse_protocol::TextFile;
use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::Mode;

use super::folder::{FOLDER, again, descend, names};
use super::unpack::create_file;

// A file may be the program itself.
const MODE: u32 = 0o755;

/// Writes `files` below `workspace`, as whoever calls; on failure the number of the file and why.
pub(crate) fn write_texts(workspace: &CStr, files: &[TextFile]) -> Result<(), (usize, Errno)> {
    if files.is_empty() {
        return Ok(());
    }
    let folder = open(workspace, FOLDER, Mode::empty()).map_err(|errno| (0, errno))?;
    for (number, file) in files.iter().enumerate() {
        let written = write_text(&folder, file);
        written.map_err(|e| (number, e.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)))?;
    }
    Ok(())
}

fn write_text(folder: &OwnedFd, file: &TextFile) -> io::Result<()> {
    let names = names(OsStr::new(&file.path)).ok_or(Errno::EINVAL)?;
    let (name, parents) = names.split_last().ok_or(Errno::EINVAL)?;
    let parent = descend(again(folder)?, parents, true)?;
    let mut written = create_file(&parent, name)?;
    written.write_all(file.text.as_bytes())?;
    written.set_permissions(Permissions::from_mode(MODE))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn text(path: &str, text: &str) -> TextFile {
        TextFile {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn files_are_written_below_the_workspace_and_nowhere_else() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let workspace = CString::new(inside.path().as_os_str().as_bytes()).unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("kept"), inside.path().join("old")).unwrap();
        std::fs::write(outside.path().join("kept"), "as it was").unwrap();

        let files = [text("a/b/c.py", "print(1)\0"), text("old", "new")];
        assert_eq!(write_texts(&workspace, &files), Ok(()));
        let written = inside.path().join("a/b/c.py");
        assert_eq!(std::fs::read_to_string(&written).unwrap(), "print(1)\0");
        assert_eq!(written.metadata().unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(std::fs::read_to_string(inside.path().join("old")).unwrap(), "new");
        assert_eq!(
            std::fs::read_to_string(outside.path().join("kept")).unwrap(),
            "as it was"
        );

        for path in ["../x", "/x", "", ".", "link/x", "a/../../x"] {
            let written = write_texts(&workspace, &[text("fine", ""), text(path, "")]);
            assert_eq!(written.unwrap_err().0, 1, "{path:?}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}
