//! What connects init with a program and its supervisor. Init's ends never block.

use std::os::fd::OwnedFd;

use hothouse_protocol::TerminalSize;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;

/// The descriptors between init and a program.
#[derive(Debug)]
pub(crate) struct Wires {
    /// Init's end of the input.
    pub(crate) input: Option<OwnedFd>,
    /// Init's end of the output.
    pub(crate) stdout: OwnedFd,
    /// Init's end of the error output, when it is apart.
    pub(crate) stderr: Option<OwnedFd>,
    /// Init's end of the terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// The program's three.
    pub(crate) theirs: [OwnedFd; 3],
}

impl Wires {
    /// Three pipes.
    pub(crate) fn pipes(has_input: bool) -> nix::Result<Self> {
        let (stdin, input) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, their_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        for fd in [&input, &stdout, &stderr] {
            do_not_block(fd)?;
        }
        let theirs = [stdin, their_stdout, their_stderr];
        Ok(Self {
            input: has_input.then_some(input),
            stdout,
            stderr: Some(stderr),
            terminal: None,
            theirs,
        })
    }

    /// One terminal.
    pub(crate) fn terminal(size: TerminalSize) -> nix::Result<Self> {
        let size = nix::libc::winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None)?;
        do_not_block(&pair.master)?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|_io| Errno::EMFILE);
        Ok(Self {
            input: Some(copy(&pair.master)?),
            stdout: copy(&pair.master)?,
            stderr: None,
            terminal: Some(pair.master),
            theirs: [copy(&pair.slave)?, copy(&pair.slave)?, pair.slave],
        })
    }
}

fn do_not_block(fd: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Two ends of a socket of packets.
pub(crate) fn packets() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}
