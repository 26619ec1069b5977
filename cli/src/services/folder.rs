//! The data folder: everything that `hothouse up` keeps on this machine.
//!
//! ```text
//! up.lock        held by the running `up`, with its pid; the kernel lets go of it however the process ends
//! up.json        where that `up` listens and when it began
//! admin.key      the admin key, for the clients of this user
//! secrets/       passwords of the private servers
//! postgres/      data/ and server.log
//! redis/         redis.conf, the append-only file, server.log
//! cache/         what building the sandbox image keeps
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::process;

/// A data folder that exists and belongs to this user.
#[derive(Debug, Clone)]
pub(crate) struct DataFolder {
    path: PathBuf,
}

/// What a running `up` says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Its process.
    pub(crate) pid: i32,
    /// Where its API listens.
    pub(crate) address: SocketAddr,
    /// When it was ready.
    pub(crate) started_at: DateTime<Utc>,
}

/// The right to run Hothouse in a folder, for as long as it is not dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

/// Whether the lock of a folder could be had.
#[derive(Debug)]
pub(crate) enum Locking {
    /// It is ours now.
    Held(Lock),
    /// A living `up` has it; its pid, unless it began this very moment.
    Busy(Option<i32>),
}

impl DataFolder {
    /// Opens the folder, and makes it where it is missing.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the folder and what to do.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let is_root = nix::unistd::geteuid().is_root();
        // The servers of root run as other users, who must be able to pass through to their own folders.
        let mode = if is_root { 0o711 } else { 0o700 };
        match DirBuilder::new().recursive(true).mode(mode).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!(
                    "{} is a file, and should be a folder: move it away, or choose another with --data-dir",
                    path.display()
                )
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot make the folder {}; choose another with --data-dir",
                        path.display()
                    )
                });
            }
        }
        let folder = Self::open(path)?;
        fs::set_permissions(&folder.path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot make {} private", folder.path.display()))?;
        Ok(folder)
    }

    /// Opens a folder that exists.
    ///
    /// # Errors
    /// When there is none, or it is somebody else's.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let path = path
            .canonicalize()
            .with_context(|| format!("there is no data folder {}", path.display()))?;
        let metadata = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !metadata.is_dir() {
            bail!(
                "{} is a file, and should be a folder: move it away, or choose another with --data-dir",
                path.display()
            );
        }
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            bail!(
                "{} belongs to another user (uid {}): run as that user, or choose another folder with --data-dir",
                path.display(),
                metadata.uid()
            );
        }
        Ok(Self { path })
    }

    /// The folder itself, an absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The file with the admin key.
    pub(crate) fn admin_key_file(&self) -> PathBuf {
        self.join("admin.key")
    }

    /// Tries to become the one `up` of this folder.
    ///
    /// # Errors
    /// When the lock file cannot be written.
    pub(crate) fn lock(&self) -> anyhow::Result<Locking> {
        let path = self.join("up.lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write to {}: check its owner and the disk", self.path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())
                    .with_context(|| format!("cannot write {}: is the disk full?", path.display()))?;
                Ok(Locking::Held(Lock { _file: file }))
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(Locking::Busy(process::read_pid(&path))),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Whether a living `up` holds the folder. Unlike [`Self::lock`] it writes nothing.
    pub(crate) fn is_held(&self) -> bool {
        let Ok(file) = OpenOptions::new().read(true).open(self.join("up.lock")) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, Errno::EWOULDBLOCK))
        )
    }

    /// What the running `up` wrote, or the last one did.
    pub(crate) fn running(&self) -> Option<Running> {
        serde_json::from_slice(&fs::read(self.join("up.json")).ok()?).ok()
    }

    /// Writes what this `up` is, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_running(&self, running: &Running) -> anyhow::Result<()> {
        self.write_private("up.json", &serde_json::to_vec(running)?)
    }

    /// Says that nothing runs here any more.
    pub(crate) fn clear_running(&self) {
        // A file that is left behind is harmless: the lock alone tells whether something runs.
        drop(fs::remove_file(self.join("up.json")));
    }

    /// The password of that name: 32 random bytes in hexadecimal digits, made at the first call and kept.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn password(&self, name: &str) -> anyhow::Result<String> {
        let folder = self.join("secrets");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        self.kept(&format!("secrets/{name}"), || hex::encode(rand::random::<[u8; 32]>()))
    }

    /// The admin key: `given` when there is one, else the kept one, else a new one. It is kept for the clients.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn admin_key(&self, given: Option<&str>) -> anyhow::Result<String> {
        if let Some(key) = given {
            if key.len() < 16 || key.contains(char::is_whitespace) {
                bail!("HOTHOUSE_ADMIN_KEY must have at least 16 characters and no spaces");
            }
            self.write_private("admin.key", format!("{key}\n").as_bytes())?;
            return Ok(key.to_owned());
        }
        self.kept("admin.key", || {
            format!("hh_{}", hex::encode(rand::random::<[u8; 24]>()))
        })
    }

    /// The content of a private file, which `make` gives at the first call.
    fn kept(&self, name: &str, make: impl FnOnce() -> String) -> anyhow::Result<String> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            Ok(_) => bail!("{} is empty: put its content back, or remove the file", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let text = make();
                self.write_private(name, format!("{text}\n").as_bytes())?;
                Ok(text)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes a file that only this user can read, whole or not at all.
    fn write_private(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.join(name);
        let fresh = self.join(&format!("{name}.new"));
        let write = || {
            drop(fs::remove_file(&fresh));
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().with_context(|| format!("cannot write {}: check its owner and the disk", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> (PathBuf, DataFolder) {
        let path = std::env::temp_dir().join(format!("hothouse-folder-{name}-{}", uuid::Uuid::now_v7()));
        let folder = DataFolder::create(&path).unwrap();
        (path, folder)
    }

    #[test]
    fn secrets_are_kept_and_readable_by_their_owner_alone() {
        let (path, folder) = folder("secrets");

        let first = folder.password("postgres").unwrap();
        let again = DataFolder::open(&path).unwrap().password("postgres").unwrap();

        assert_eq!((first.len(), first), (64, again));
        let mode = fs::metadata(folder.join("secrets/postgres"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_given_admin_key_replaces_the_kept_one_and_a_short_one_is_refused() {
        let (path, folder) = folder("key");

        let made = folder.admin_key(None).unwrap();
        folder.admin_key(Some("hh_0123456789abcdef")).unwrap();
        let refused = folder.admin_key(Some("short")).unwrap_err().to_string();

        assert!(made.starts_with("hh_"), "{made}");
        assert_eq!(folder.admin_key(None).unwrap(), "hh_0123456789abcdef");
        assert!(refused.contains("at least 16 characters"), "{refused}");
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_lock_of_a_folder_is_held_once_and_names_its_holder() {
        let (path, folder) = folder("lock");

        let Locking::Held(lock) = folder.lock().unwrap() else {
            panic!("nobody else holds it")
        };
        let Locking::Busy(pid) = folder.lock().unwrap() else {
            panic!("it is held")
        };
        drop(lock);

        assert_eq!(pid, i32::try_from(std::process::id()).ok());
        assert!(matches!(folder.lock().unwrap(), Locking::Held(_)));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told_in_one_sentence() {
        let path = std::env::temp_dir().join(format!("hothouse-folder-file-{}", uuid::Uuid::now_v7()));
        fs::write(&path, "").unwrap();

        let error = DataFolder::create(&path).unwrap_err().to_string();

        assert!(error.contains("is a file, and should be a folder"), "{error}");
        fs::remove_file(path).unwrap();
    }
}
