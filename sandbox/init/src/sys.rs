//! The system calls that no safe wrapper offers, each with the reason why it is sound.
#![expect(
    unsafe_code,
    reason = "fork, exec and capabilities have no safe form; every block says why it is sound"
)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{ForkResult, Pid, fork};

/// Forks. Init and its supervisors have one thread each, so the child may do whatever the parent may.
pub(crate) fn fork_single_threaded() -> nix::Result<Option<Pid>> {
    // SAFETY: no other thread exists that could hold a lock of the allocator or of the library in the child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends a forked child without running what the parent registered for its own end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: only called at the start of init and in a fresh fork, before any object owns a descriptor in that range
    // that is used or dropped afterwards.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return;
    }
    for fd in first..fd_limit() {
        // SAFETY: as above; closing a number that is not open is harmless.
        unsafe { libc::close(fd) };
    }
}

fn fd_limit() -> RawFd {
    let limit =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(4096, |(_, hard)| hard);
    RawFd::try_from(limit.min(65_536)).unwrap_or(65_536)
}

/// Makes `target` a copy of `source`, closing what it was; with `keep`, programs inherit it.
pub(crate) fn put_at(source: BorrowedFd<'_>, target: RawFd, keep: bool) -> nix::Result<()> {
    let flags = if keep { 0 } else { libc::O_CLOEXEC };
    // SAFETY: only used in a fresh fork for numbers 0 to 4, which no object of the fork owns any more.
    let done = unsafe { libc::dup3(source.as_raw_fd(), target, flags) };
    Errno::result(done).map(drop)
}

/// Whether an open file has extended attributes that its owner may have given it.
pub(crate) fn has_attributes(fd: BorrowedFd<'_>) -> bool {
    let mut names = [0_u8; 4096];
    // SAFETY: the descriptor is open, and the kernel writes at most as many bytes as the buffer has.
    let len = unsafe { libc::flistxattr(fd.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    match usize::try_from(len) {
        Ok(len) => {
            let mut names = names.get(..len).unwrap_or_default().split(|byte| *byte == 0);
            names.any(|name| !name.is_empty() && !name.starts_with(b"security."))
        }
        // A file system without them has none; a list that is too long is some.
        Err(_) => Errno::last() == Errno::ERANGE,
    }
}

/// What a kernel may keep for processes that have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipc {
    SharedMemory,
    Semaphores,
    Messages,
    /// By name, of POSIX.
    Queues,
}

/// Whether the kernel has calls for it; they are asked for something that is not there.
pub(crate) fn has_ipc(kind: Ipc) -> bool {
    const KEY: libc::key_t = 0x686f_7468;
    // SAFETY: no call makes or changes anything, and the one pointer is to a string that lives as long as the program.
    let answer = unsafe {
        match kind {
            Ipc::SharedMemory => libc::syscall(libc::SYS_shmget, KEY, 0_usize, 0),
            Ipc::Semaphores => libc::syscall(libc::SYS_semget, KEY, 0, 0),
            Ipc::Messages => libc::syscall(libc::SYS_msgget, KEY, 0),
            Ipc::Queues => libc::syscall(libc::SYS_mq_open, c"hothouse-is-not-there".as_ptr(), libc::O_RDONLY),
        }
    };
    Errno::result(answer) != Err(Errno::ENOSYS)
}

/// Takes a descriptor out of harm's way, above those that [`put_at`] overwrites.
pub(crate) fn move_high(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: the argument is an open descriptor, and the result is a new one that nobody else owns.
    let raw = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 16) })?;
    // SAFETY: just made.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The object for a descriptor that was put at a known place, or came with a message.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers put it there themselves with `put_at`, or the kernel just made it for them; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// One of the three descriptors that a process begins with.
pub(crate) fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 stay open as long as init lives; only forks replace them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Gives a descriptor up without closing it.
#[expect(clippy::mem_forget, reason = "it is closed with a whole range of others at once")]
pub(crate) fn leak(fd: OwnedFd) {
    std::mem::forget(fd);
}

/// Gives up every capability and the way back to them.
pub(crate) fn drop_capabilities() -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Set {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let none = [Set::default(); 2];
    // SAFETY: prctl with numbers only; an error (kernels without ambient capabilities) leaves nothing to clear.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // SAFETY: both structures live through the call and have the layout that version 3 names: two sets.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Makes the terminal behind `fd` the controlling one of this session.
pub(crate) fn control_terminal(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: an open descriptor and a number.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the size of the terminal behind `fd`.
pub(crate) fn resize_terminal(fd: BorrowedFd<'_>, rows: u16, cols: u16) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: an open descriptor and a structure that lives through the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// What happens to signals in a fresh program: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    // SAFETY: restoring the default action installs no handler.
    let restored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    debug_assert!(restored.is_ok());
    let unblocked = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    debug_assert!(unblocked.is_ok());
}

/// Becomes the program behind `fd`; returns only when that fails.
pub(crate) fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer and point to strings that live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// Becomes the program at `path`; returns only when that fails.
pub(crate) fn exec_path(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in a null pointer and point to strings that live through the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    Errno::last()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}
