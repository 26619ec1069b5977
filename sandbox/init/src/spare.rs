//! A supervisor and the fork that will become its program, ready before anybody asks.
//!
//! Both forks, and what they copy of init, would otherwise be between a request and its program. A spare waits at its
//! door for an [`Order`]: what to become, in a file without a name, and the three descriptors to become it with.

use std::fs::File;
use std::io::{BufReader, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use hothouse_protocol::{Failure, Program};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::supervisor::{Charge, PACKET_MAX, Report, supervise};
use crate::surroundings::Surroundings;
use crate::sys;
use crate::trouble::Unsupervised;
use crate::wires::packets;

/// Init's ends of a spare, or of the run that it became.
#[derive(Debug)]
pub(crate) struct Spare {
    /// To its supervisor.
    pub(crate) socket: OwnedFd,
    /// To its program to be: [`Word`]s come from there, and the end when the program runs.
    pub(crate) door: OwnedFd,
    supervisor: Pid,
    pid: u32,
}

/// What became of an order.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It is not known yet.
    Nothing,
    /// The program runs.
    Runs,
    /// It could not be started.
    Failed(Failure),
}

/// What the program to be says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// It waits; this is its number.
    Here(u32),
    /// It could not become the program.
    Failed(Failure),
}

impl Word {
    /// Whether init heard of it.
    pub(crate) fn say(&self, door: &OwnedFd) -> bool {
        let packet = serde_json::to_vec(self).unwrap_or_default();
        send(door.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL).is_ok()
    }
}

/// What the program to be is told.
#[derive(Debug)]
pub(crate) struct Order {
    /// What to become.
    pub(crate) program: Program,
    /// Its input, output and error output.
    pub(crate) stdio: [OwnedFd; 3],
}

impl Spare {
    /// Forks one.
    pub(crate) fn fork(around: &Surroundings) -> nix::Result<Self> {
        let (socket, their_socket) = packets()?;
        let (door, their_door) = packets()?;
        let Some(supervisor) = sys::fork_single_threaded()? else {
            supervise(Charge {
                identity: around.identity,
                workspace: &around.workspace,
                mounts: &around.mounts,
                own_image: around.own_image.as_fd(),
                socket: their_socket,
                door: their_door,
            })
        };
        Ok(Self {
            socket,
            door,
            supervisor,
            pid: 0,
        })
    }

    /// Gives `order` to `spare`, or to a fresh one when that waits no more.
    pub(crate) fn ordered(spare: Option<Self>, order: &Order, around: &Surroundings) -> nix::Result<Self> {
        if let Some(spare) = spare.filter(Self::is_waiting)
            && spare.order(order).is_ok()
        {
            return Ok(spare);
        }
        let fresh = Self::fork(around)?;
        match fresh.order(order) {
            // Nobody is at the door any more. Why is to be heard there.
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(fresh),
            Err(errno) => Err(errno),
        }
    }

    /// Whether both still wait: somebody with the same user could have killed them.
    fn is_waiting(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }

    /// Tells it what to become.
    fn order(&self, order: &Order) -> nix::Result<()> {
        let text = serde_json::to_vec(&order.program).map_err(|_json| Errno::EINVAL)?;
        // The file takes it whole and at once, which a socket need not.
        let mut file = File::from(memfd_create(c"order", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&text).map_err(errno)?;
        let fds: Vec<RawFd> = order
            .stdio
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([file.as_raw_fd()])
            .collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let byte = [std::io::IoSlice::new(&[0])];
        sendmsg::<()>(self.door.as_raw_fd(), &byte, &rights, flags, None).map(drop)
    }

    /// The supervisor and its program.
    pub(crate) fn processes(&self) -> [Pid; 2] {
        [self.supervisor, Pid::from_raw(i32::try_from(self.pid).unwrap_or(0))]
    }

    /// What became of the tree.
    pub(crate) fn hear_supervisor(&self) -> Result<Option<Report>, Unsupervised> {
        let mut packet = [0; PACKET_MAX];
        loop {
            return match recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
                // It ended without reading the last command. What it reported before is still there.
                Err(Errno::ECONNRESET) => continue,
                Ok(len) if len > 0 => parsed(&packet, len).map(Some),
                Ok(_) | Err(_) => Err(Unsupervised),
            };
        }
    }

    /// Whether the program runs.
    pub(crate) fn hear_program(&mut self) -> Result<Heard, Unsupervised> {
        let mut packet = [0; PACKET_MAX];
        loop {
            match recv(self.door.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                // Reset: nobody read the order. What was said before is still there.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Ok(len) if len > 0 => match parsed(&packet, len)? {
                    Word::Here(pid) => self.pid = pid,
                    Word::Failed(failure) => return Ok(Heard::Failed(failure)),
                },
                Ok(_) | Err(_) => return Ok(Heard::Runs),
            }
        }
    }
}

fn parsed<T: DeserializeOwned>(packet: &[u8], len: usize) -> Result<T, Unsupervised> {
    serde_json::from_slice(packet.get(..len).unwrap_or_default()).map_err(|_json| Unsupervised)
}

/// Waits for an order, in the program to be.
pub(crate) fn receive(door: &OwnedFd) -> nix::Result<Order> {
    Word::Here(std::process::id()).say(door);
    let mut byte = [0];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let received = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(door.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let fds: Vec<RawFd> = received
        .cmsgs()?
        .filter_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let Ok([stdin, stdout, stderr, text]) = <[RawFd; 4]>::try_from(fds) else {
        return Err(Errno::EPIPE);
    };
    let mut file = File::from(sys::own(text));
    file.rewind().map_err(errno)?;
    let program = serde_json::from_reader(BufReader::new(file)).map_err(|_json| Errno::EINVAL)?;
    // Out of the way of the numbers where they will be put.
    let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(sys::own);
    let stdio = [
        sys::move_high(&stdin)?,
        sys::move_high(&stdout)?,
        sys::move_high(&stderr)?,
    ];
    Ok(Order { program, stdio })
}

fn errno(error: std::io::Error) -> Errno {
    Errno::try_from(error).unwrap_or(Errno::EIO)
}
