//! The command line of a sandbox.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use nix::unistd::geteuid;
use tokio::process::Command;

use super::cgroup::Limited;
use super::{Settings, etc, seccomp};
use crate::driver::Profile;
use crate::sandbox::JOB_UID;

/// Init's place inside.
pub(super) const INIT: &str = "/.hothouse/init";

/// Where the host's programs are looked up.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// Above what distributions give to people and services, below what systemd gives away dynamically: the user of a job
// must be nobody outside.
const OUTSIDE_UID: u32 = 60_999;

/// Shared memory inside, in bytes.
pub(super) const SHM_BYTES: u64 = 16 << 20;

const FILTER_FD: &str = "9";
const INFO_FD: &str = "8";

// Enters the cgroups, opens the filter at its number and becomes the program. `$1` counts the folders that follow. Where
// init runs is told on standard error, by a number that can read it too: were it only written to, the worker's death in
// that moment would end `bwrap` before it tells the sandbox to go on, which then would wait for ever.
const LAUNCH: &str = r#"n=$1; shift
while [ "$n" -gt 0 ]; do echo $$ >"$1/cgroup.procs" || exit 97; shift; n=$((n - 1)); done
exec 9<"$1" 8<>/proc/self/fd/2; shift
exec "$@""#;

/// The user that jobs run as.
pub(super) fn job_uid() -> u32 {
    if geteuid().is_root() { OUTSIDE_UID } else { JOB_UID }
}

/// What prepares a process and becomes the command that is added to it.
pub(super) fn launcher(limited: Option<&Limited>, state: &Path) -> Command {
    let folders = limited.map(Limited::folders).unwrap_or_default();
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(LAUNCH)
        .arg("hothouse-sandbox")
        .arg(folders.len().to_string());
    command.args(folders).arg(seccomp::path(state));
    command
}

/// The arguments of `bwrap` up to the program.
pub(super) fn sandbox(settings: &Settings, profile: &Profile, limited: Option<&Limited>) -> Vec<OsString> {
    let mut args = Args::default();
    args.words("--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --hostname sandbox");
    args.words("--as-pid-1 --new-session --clearenv --info-fd")
        .word(INFO_FD)
        .word("--seccomp")
        .word(FILTER_FD);
    if geteuid().is_root() {
        // What init needs to start jobs as another user and to kill them.
        args.words("--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_KILL");
    } else {
        args.words("--unshare-user --uid")
            .word(JOB_UID.to_string())
            .word("--gid")
            .word(JOB_UID.to_string());
    }
    args.words("--ro-bind /usr /usr");
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            Ok(target) => args.word("--symlink").word(target).word(path),
            Err(_) if path.is_dir() => args.word("--ro-bind").word(&path).word(&path),
            Err(_) => &mut args,
        };
    }
    args.word("--ro-bind").word(etc::path(&settings.state)).word("/etc");
    for path in etc::from_host() {
        args.words("--ro-bind").word(&path).word(&path);
    }
    // Queues can be made without the mount too, but only there can they be seen, and deleted between two jobs.
    args.words("--proc /proc --dev /dev --mqueue /dev/mqueue --remount-ro /dev");
    args.tmpfs("/dev/shm", "1777", SHM_BYTES);
    // The folder cannot be given to the job's user from here; nobody else lives in the sandbox.
    args.tmpfs("/workspace", "0777", profile.workspace_bytes);
    args.tmpfs("/tmp", "1777", profile.tmp_bytes);
    args.words("--ro-bind").word(&settings.init).word(INIT);
    for (name, folder) in limited.map(Limited::readable).unwrap_or_default() {
        args.words("--ro-bind")
            .word(folder)
            .word(format!("/.hothouse/cgroup/{name}"));
    }
    args.words("--remount-ro / --chdir /workspace");
    args.0
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn words(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(OsString::from));
        self
    }

    fn word(&mut self, word: impl Into<OsString>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn tmpfs(&mut self, path: &str, mode: &str, bytes: u64) {
        self.word("--perms")
            .word(mode)
            .word("--size")
            .word(bytes.to_string())
            .word("--tmpfs")
            .word(path);
    }
}
