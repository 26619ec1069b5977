//! The `/etc` of a sandbox: a few files of our own and what programs of the host's `/usr` cannot do without.

use std::fs;
use std::path::{Path, PathBuf};

use super::{io, write};
use crate::driver::Error;

// Nothing here tells about the host but which programs it has.
const FROM_HOST: [&str; 9] = [
    "/etc/alternatives",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/matplotlibrc",
    "/etc/mime.types",
    "/etc/python3",
    "/etc/python3.11",
    "/etc/ssl/certs",
];

/// The generated folder.
pub(super) fn path(state: &Path) -> PathBuf {
    state.join("etc")
}

/// What of the host's own is shown, where it exists.
pub(super) fn from_host() -> impl Iterator<Item = &'static str> {
    FROM_HOST.into_iter().filter(|path| Path::new(path).exists())
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
        let place = etc.join(Path::new(path).strip_prefix("/etc").unwrap_or_else(|_| Path::new(path)));
        if Path::new(path).is_dir() {
            make(&place)?;
        } else if !place.exists() {
            write(&place, "")?;
        }
    }
    Ok(())
}
