//! The `/etc` of a sandbox: a few files of our own and what programs of the host's `/usr` cannot do without.

use std::fs;
use std::path::{Path, PathBuf};

use super::{io, write};
use crate::driver::Error;

// Nothing here tells about the host but which programs it has.
const FROM_HOST: [&str; 7] = [
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/matplotlibrc",
    "/etc/mime.types",
    "/etc/ssl/certs",
];

/// The generated folder.
pub(super) fn path(state: &Path) -> PathBuf {
    state.join("etc")
}

/// What of the host's own is shown, where it exists.
pub(super) fn from_host() -> Vec<PathBuf> {
    let named = FROM_HOST.into_iter().map(PathBuf::from).filter(|path| path.exists());
    // One folder for each version of Python.
    let found = fs::read_dir("/etc").into_iter().flatten().flatten();
    let pythons = found.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
    named.chain(pythons.map(|entry| entry.path())).collect()
}

/// Writes the folder for a job's user of this number.
pub(super) fn write_folder(state: &Path, uid: u32) -> Result<(), Error> {
    let etc = path(state);
    let make = |folder: &Path| {
        fs::create_dir_all(folder).map_err(|e| io(&format!("making the folder {}", folder.display()), e))
    };
    make(&etc)?;
    let files = [
        (
            "passwd",
            format!("root:x:0:0::/:/usr/sbin/nologin\njob:x:{uid}:{uid}::/workspace:/bin/sh\n"),
        ),
        ("group", format!("root:x:0:\njob:x:{uid}:\n")),
        ("hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("hostname", "sandbox\n".to_owned()),
        (
            "nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n".to_owned(),
        ),
        ("resolv.conf", String::new()),
    ];
    for (name, content) in files {
        write(&etc.join(name), content)?;
    }
    // A mount needs a place to be mounted on.
    for path in from_host() {
        let Ok(inside) = path.strip_prefix("/etc") else {
            continue;
        };
        let place = etc.join(inside);
        if path.is_dir() {
            make(&place)?;
        } else if !place.exists() {
            write(&place, "")?;
        }
    }
    Ok(())
}
