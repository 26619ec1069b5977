//! A reset: a fork of init that deletes and looks, as the job, what [`crate::files::reset`] says.
//!
//! It is a fork and no program of its own, because what it does must cost less than another sandbox. While it is there,
//! nothing else is but init, so there is nobody who could read or deceive it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hothouse_protocol::{Failure, FailureCode};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::child::become_identity;
use crate::files::{self, Known, QUEUES};
use crate::supervisor::{PACKET_MAX, failed_to_fork};
use crate::surroundings::Surroundings;
use crate::sys;
use crate::tcp::Counted;
use crate::wires::packets;

const SOCKET: i32 = 3;

/// What it says when nothing is left; anything else is what is.
const CLEAN: &[u8] = b"\0clean";

/// A reset that is under way.
#[derive(Debug)]
pub(crate) struct Cleaner {
    /// The requests that it answers.
    pub(crate) streams: Vec<u32>,
    /// What was counted when nothing ran any more.
    pub(crate) counted: Option<Counted>,
    socket: OwnedFd,
    said: Option<Result<(), Failure>>,
}

impl Cleaner {
    /// Begins, when nothing else runs. `known` was counted when there was no connection.
    pub(crate) fn fork(streams: Vec<u32>, known: Option<&Counted>, around: &Surroundings) -> Result<Self, Failure> {
        let counted = Counted::now();
        let known = Known {
            is_tcp_unmoved: counted.is_some() && counted.as_ref() == known,
            has_no_others: counted.as_ref().is_some_and(|counted| counted.has_no_others),
        };
        let (socket, theirs) = packets().map_err(failed_to_fork)?;
        let Some(_pid) = sys::fork_single_threaded().map_err(failed_to_fork)? else {
            clean(around, known, &theirs)
        };
        Ok(Self {
            streams,
            counted,
            socket,
            said: None,
        })
    }

    /// What to wait for.
    pub(crate) fn watch(&self) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)
    }

    /// What came of it, once the fork has ended.
    pub(crate) fn hear(&mut self) -> Option<Result<(), Failure>> {
        let mut packet = [0; PACKET_MAX];
        loop {
            match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return None,
                Ok(len) if len > 0 => self.said = Some(parsed(packet.get(..len).unwrap_or_default())),
                Ok(_) | Err(_) => return Some(self.said.take().unwrap_or_else(|| Err(left("the reset ended early")))),
            }
        }
    }
}

fn parsed(packet: &[u8]) -> Result<(), Failure> {
    if packet == CLEAN {
        return Ok(());
    }
    Err(left(&String::from_utf8_lossy(packet)))
}

fn left(message: &str) -> Failure {
    Failure {
        code: FailureCode::Internal,
        message: message.to_owned(),
    }
}

/// The life of the fork.
fn clean(around: &Surroundings, known: Known, socket: &OwnedFd) -> ! {
    let ready = arrange(socket).and_then(|()| become_identity(&around.identity));
    // With another identity the kernel has forgotten it.
    let ready = ready.and_then(|()| prctl::set_dumpable(false));
    let done = match ready {
        Ok(()) => {
            let folders = around.mounts.iter().map(String::as_str).chain([QUEUES]);
            files::reset(folders, known).map_err(|error| error.to_string())
        }
        Err(errno) => Err(errno.desc().to_owned()),
    };
    let packet = done.as_ref().map_or_else(String::as_bytes, |()| CLEAN);
    let said = send(SOCKET, packet, MsgFlags::MSG_NOSIGNAL);
    sys::exit_now(i32::from(said.is_err()))
}

/// Keeps the socket alone: nothing of the connection or of a tunnel stays open.
fn arrange(socket: &OwnedFd) -> nix::Result<()> {
    let high = sys::move_high(socket)?;
    sys::put_at(high.as_fd(), SOCKET, false)?;
    sys::leak(high);
    sys::close_from(SOCKET + 1);
    (0..SOCKET).map(sys::own).for_each(drop);
    Ok(())
}
