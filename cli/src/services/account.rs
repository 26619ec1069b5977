//! Who the private servers run as.
//!
//! Postgres refuses to run as root, and Redis should not. So root starts each as the user of its package, and everybody
//! else as themselves. That user must be able to enter the server's folder, which below `/root` they cannot; then the
//! server gets a mount namespace of its own in which its folder, and nothing else of the path, is in reach.

use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, User};
use tokio::process::Command;

/// Where a folder that cannot be reached is shown to its server. Every Debian has it, and the server needs nothing there.
const MOUNT_POINT: &str = "/mnt";

/// How to run a server in its folder.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// `None` for whoever runs `up`.
    user: Option<(Uid, Gid)>,
    /// The folder as `up` sees it.
    outside: PathBuf,
    /// The folder as the server sees it.
    inside: PathBuf,
}

impl Account {
    /// Makes `folder` and finds out who can work in it: for root the first of `names` that this machine knows.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub(crate) async fn new(folder: &Path, names: &[&str]) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut account = Self {
            user: None,
            outside: folder.to_owned(),
            inside: folder.to_owned(),
        };
        if !nix::unistd::geteuid().is_root() {
            return Ok(account);
        }
        let Some(user) = names.iter().find_map(|name| User::from_name(name).ok().flatten()) else {
            bail!(
                "this machine has no user {}: install the packages with `make up`",
                names.join(" or ")
            );
        };
        chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("cannot give {} to the user {}", folder.display(), user.name))?;
        account.user = Some((user.uid, user.gid));
        if !account.can_enter().await {
            account.inside = MOUNT_POINT.into();
            if !account.can_enter().await {
                bail!(
                    "the user {} cannot enter {}, and this machine allows no mount namespace: choose a folder that \
                     others may pass through, such as --data-dir /var/lib/hothouse",
                    user.name,
                    folder.display()
                );
            }
        }
        Ok(account)
    }

    /// The folder as the server sees it: what its arguments and files must name.
    pub(crate) fn folder(&self) -> &Path {
        &self.inside
    }

    /// Gives a file to this account.
    ///
    /// # Errors
    /// When the file cannot be given away.
    pub(crate) fn own(&self, file: &Path) -> anyhow::Result<()> {
        if let Some((uid, gid)) = self.user {
            chown(file, Some(uid.as_raw()), Some(gid.as_raw()))
                .with_context(|| format!("cannot give {} to its server", file.display()))?;
        }
        Ok(())
    }

    /// A command that runs `program` as this account, in its folder, with nothing of this process's environment but the
    /// PATH, in a process group of its own: a Ctrl-C on the terminal is for `up`, which ends its servers in order.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = if self.inside == self.outside {
            let mut command = Command::new(program);
            if let Some((uid, gid)) = self.user {
                command.uid(uid.as_raw()).gid(gid.as_raw());
            }
            command
        } else {
            self.in_a_namespace(program)
        };
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .current_dir(&self.outside)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Each program of the chain replaces itself by the next, so the pid is the server's.
    fn in_a_namespace(&self, program: &Path) -> Command {
        let (uid, gid) = self
            .user
            .unwrap_or_else(|| (nix::unistd::geteuid(), nix::unistd::getegid()));
        let script = "mount --bind \"$1\" \"$2\" && cd \"$2\" && uid=$3 gid=$4 && shift 4 && \
                      exec setpriv --reuid \"$uid\" --regid \"$gid\" --clear-groups -- \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
            .arg(&self.outside)
            .arg(&self.inside)
            .args([uid.to_string(), gid.to_string()])
            .arg(program);
        command
    }

    async fn can_enter(&self) -> bool {
        let status = self
            .command(Path::new("/usr/bin/test"))
            .arg("-w")
            .arg(&self.inside)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        status.is_ok_and(|status| status.success())
    }
}
