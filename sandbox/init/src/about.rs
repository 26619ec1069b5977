//! What init finds around itself, told once in its hello: the worker decides whether that is good enough.

use std::fs;

use hothouse_protocol::{About, Greeting, VERSION};
use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Pid, Uid, geteuid};

use crate::cgroup::Cgroup;
use crate::plan::Identity;

const CAP_KILL: u32 = 5;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

/// Who programs run as, given what init may do.
pub(crate) fn identity(greeting: &Greeting) -> Identity {
    let (uid, gid) = (Uid::from_raw(greeting.uid), Gid::from_raw(greeting.gid));
    let may = has_capabilities(&[CAP_SETUID, CAP_SETGID]);
    Identity {
        uid,
        gid,
        can_change: may && uid != geteuid(),
    }
}

/// The answer to the worker's hello.
pub(crate) fn describe(identity: &Identity, cgroup: &Cgroup, writable_mounts: &[String], ports: Vec<u16>) -> About {
    About {
        version: VERSION,
        init_version: env!("CARGO_PKG_VERSION").to_owned(),
        is_pid1: Pid::this().as_raw() == 1,
        has_own_uid: identity.can_change,
        is_undumpable: prctl::get_dumpable() == Ok(false),
        no_new_privs: prctl::get_no_new_privs() == Ok(true),
        can_kill: !identity.can_change || has_capabilities(&[CAP_KILL]),
        has_read_only_root: statvfs("/").is_ok_and(|root| root.flags().contains(FsFlags::ST_RDONLY)),
        cgroup: cgroup.kind(),
        writable_mounts: writable_mounts.to_vec(),
        ports,
        can_rest: true,
        can_reset: true,
    }
}

fn has_capabilities(wanted: &[u32]) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|set| wanted.iter().all(|bit| set & (1 << bit) != 0))
}
