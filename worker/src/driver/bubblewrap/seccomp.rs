//! The system call filter of a sandbox, as the kernel wants it: a small program that looks at each call.
//!
//! It takes away what no job needs and kernels have been broken through: mounting, namespaces, keys, tracing of the
//! kernel, asynchronous rings, and sockets of other families than local, internet and netlink. Everything else is
//! allowed; who cannot do something is decided by capabilities, of which a job has none.

use std::path::{Path, PathBuf};

use nix::libc;

use super::write;
use crate::driver::Error;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const DENIED: [libc::c_long; 42] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_memfd_secret,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

// The kernel makes both sockets, and loads what it needs for that, before it finds that most families have no pairs.
const PAIRS: [i32; 1] = [libc::AF_UNIX];

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

// Offsets in what the program looks at; the lower half of an argument comes first on both architectures.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT_0: u32 = 16;
const ARGUMENT_1: u32 = 24;

const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

/// Where the filter is kept.
pub(super) fn path(state: &Path) -> PathBuf {
    state.join("seccomp.bpf")
}

/// Writes the filter.
pub(super) fn write_filter(state: &Path) -> Result<(), Error> {
    write(&path(state), program())
}

fn program() -> Vec<u8> {
    let mut filter = Filter::default();
    filter.put(LOAD, 0, 0, ARCHITECTURE);
    filter.put(IF_EQUAL, 1, 0, ARCH);
    filter.put(RETURN, 0, 0, KILL_PROCESS);
    filter.put(LOAD, 0, 0, NUMBER);
    // The other call table of the same architecture.
    #[cfg(target_arch = "x86_64")]
    filter.when(IF_AT_LEAST, 0x4000_0000, libc::ENOSYS);
    for call in DENIED {
        filter.when(IF_EQUAL, number(call), libc::EPERM);
    }
    // Its flags are behind a pointer, out of sight; programs fall back to `clone`.
    filter.when(IF_EQUAL, number(libc::SYS_clone3), libc::ENOSYS);
    filter.unless_call(libc::SYS_clone, 4);
    filter.put(LOAD, 0, 0, ARGUMENT_0);
    filter.when(IF_ANY_BIT, NAMESPACES.cast_unsigned(), libc::EPERM);
    filter.put(RETURN, 0, 0, ALLOW);
    // Typing into another's terminal.
    filter.unless_call(libc::SYS_ioctl, 6);
    filter.put(LOAD, 0, 0, ARGUMENT_1);
    for request in [0x5412, 0x541c] {
        filter.when(IF_EQUAL, request, libc::EPERM);
    }
    filter.put(RETURN, 0, 0, ALLOW);
    for (call, families) in [(libc::SYS_socket, &FAMILIES[..]), (libc::SYS_socketpair, &PAIRS)] {
        filter.unless_call(call, u8::try_from(families.len()).unwrap_or(0) * 2 + 2);
        filter.put(LOAD, 0, 0, ARGUMENT_0);
        for family in families {
            filter.put(IF_EQUAL, 0, 1, family.cast_unsigned());
            filter.put(RETURN, 0, 0, ALLOW);
        }
        filter.put(RETURN, 0, 0, ERRNO | libc::EAFNOSUPPORT.cast_unsigned());
    }
    filter.put(RETURN, 0, 0, ALLOW);
    filter.0
}

#[derive(Default)]
struct Filter(Vec<u8>);

impl Filter {
    fn put(&mut self, code: u16, if_true: u8, if_false: u8, value: u32) {
        self.0.extend(code.to_ne_bytes());
        self.0.extend([if_true, if_false]);
        self.0.extend(value.to_ne_bytes());
    }

    /// The call fails with `errno` when the comparison holds.
    fn when(&mut self, comparison: u16, value: u32, errno: i32) {
        self.put(comparison, 0, 1, value);
        self.put(RETURN, 0, 0, ERRNO | errno.cast_unsigned());
    }

    /// Passes over the next `steps` for every other call.
    fn unless_call(&mut self, call: libc::c_long, steps: u8) {
        self.put(IF_EQUAL, 0, steps, number(call));
    }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the program, for one call.
    fn verdict(call: libc::c_long, arguments: [u32; 2]) -> u32 {
        let program = program();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = &program[at * 8..at * 8 + 8];
            let code = u16::from_ne_bytes([step[0], step[1]]);
            let value = u32::from_ne_bytes([step[4], step[5], step[6], step[7]]);
            let holds = match code {
                LOAD => {
                    loaded = match value {
                        NUMBER => number(call),
                        ARCHITECTURE => ARCH,
                        ARGUMENT_0 => arguments[0],
                        ARGUMENT_1 => arguments[1],
                        _ => panic!("nothing is at {value}"),
                    };
                    at += 1;
                    continue;
                }
                RETURN => return value,
                IF_EQUAL => loaded == value,
                IF_AT_LEAST => loaded >= value,
                IF_ANY_BIT => loaded & value != 0,
                _ => panic!("no such step"),
            };
            at += 1 + usize::from(if holds { step[2] } else { step[3] });
        }
    }

    fn error(errno: i32) -> u32 {
        ERRNO | errno.cast_unsigned()
    }

    #[test]
    fn ordinary_calls_pass() {
        for call in [
            libc::SYS_read,
            libc::SYS_execve,
            libc::SYS_mmap,
            libc::SYS_ptrace,
            libc::SYS_futex,
        ] {
            assert_eq!(verdict(call, [0, 0]), ALLOW);
        }
        assert_eq!(verdict(libc::SYS_clone, [0x0100_0011, 0]), ALLOW);
        assert_eq!(verdict(libc::SYS_ioctl, [0, 0x5413]), ALLOW);
        for family in FAMILIES {
            assert_eq!(verdict(libc::SYS_socket, [family.cast_unsigned(), 0]), ALLOW);
        }
        assert_eq!(verdict(libc::SYS_socketpair, [libc::AF_UNIX.cast_unsigned(), 0]), ALLOW);
    }

    #[test]
    fn ways_into_the_kernel_are_shut() {
        for call in DENIED {
            assert_eq!(verdict(call, [0, 0]), error(libc::EPERM), "{call}");
        }
        assert_eq!(verdict(libc::SYS_clone3, [0, 0]), error(libc::ENOSYS));
        assert_eq!(
            verdict(libc::SYS_clone, [libc::CLONE_NEWUSER.cast_unsigned(), 0]),
            error(libc::EPERM)
        );
        assert_eq!(verdict(libc::SYS_ioctl, [0, 0x5412]), error(libc::EPERM));
        let sockets = [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG].map(|family| (libc::SYS_socket, family));
        let pairs = [libc::AF_TIPC, libc::AF_INET, libc::AF_NETLINK].map(|family| (libc::SYS_socketpair, family));
        for (call, family) in sockets.into_iter().chain(pairs) {
            assert_eq!(
                verdict(call, [family.cast_unsigned(), 0]),
                error(libc::EAFNOSUPPORT),
                "{call} {family}"
            );
        }
    }
}
