//! The connection to the worker: frames in and out over descriptors 0 and 1, never blocking.

use bytes::{Buf, BytesMut};
use hothouse_protocol::{Decoder, Frame, FromInit, ToInit};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

use crate::sys::standard;
use crate::whatever;

// What the kernel keeps of either direction, so that the other end need not wait for us after each 64 KiB. A user may have
// 64 MiB of such pipes.
const PIPE_BYTES: i32 = 512 * 1024;
// More than this waiting means that the worker asks and does not read the answers.
const WAITING_MAX: usize = 8 * 1024 * 1024;
// Output of programs is read only while less than this waits, so that control is never far behind.
const WAITING_FOR_DATA: usize = 256 * 1024;

/// Both directions.
#[derive(Debug)]
pub(crate) struct Connection {
    decoder: Decoder,
    incoming: BytesMut,
    outgoing: BytesMut,
}

/// Why there is no connection any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The worker closed it, or is gone.
    #[error("the end of the input")]
    Closed,
    /// Somebody wrote what is not of this connection, or the worker is broken.
    #[error("a protocol error: {0}")]
    Protocol(#[from] hothouse_protocol::Error),
    /// The worker does not read.
    #[error("the worker reads nothing")]
    Stuck,
    /// The worker sent more input than it had credit for.
    #[error("more input than the window allows")]
    OverWindow,
    /// A descriptor failed.
    #[error("the pipe failed: {0}")]
    Pipe(Errno),
}

impl Connection {
    /// Over descriptors 0 and 1.
    pub(crate) fn open() -> nix::Result<Self> {
        for number in 0..2 {
            let flags = OFlag::from_bits_retain(fcntl(standard(number), FcntlArg::F_GETFL)?);
            fcntl(standard(number), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            // Where there are too many, they stay as they are.
            whatever(fcntl(standard(number), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)));
        }
        Ok(Self {
            decoder: Decoder::adopting(),
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
        })
    }

    /// Reads what has come.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Lost> {
        match read(standard(0), buffer) {
            Ok(0) => Err(Lost::Closed),
            Ok(len) => {
                self.incoming.extend_from_slice(buffer.get(..len).unwrap_or_default());
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(Lost::Pipe(errno)),
        }
    }

    /// The next whole message that has come.
    pub(crate) fn next(&mut self) -> Result<Option<ToInit>, Lost> {
        Ok(self
            .decoder
            .decode(&mut self.incoming)?
            .map(ToInit::try_from)
            .transpose()?)
    }

    /// Puts a message in line.
    pub(crate) fn send(&mut self, message: FromInit) -> Result<(), Lost> {
        let Some(token) = self.decoder.token() else {
            return Ok(());
        };
        Frame::from(message).encode(&token, &mut self.outgoing)?;
        if self.outgoing.len() > WAITING_MAX {
            Err(Lost::Stuck)
        } else {
            Ok(())
        }
    }

    /// Writes as much as the pipe takes.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        while !self.outgoing.is_empty() {
            match write(standard(1), &self.outgoing) {
                Ok(len) => self.outgoing.advance(len),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(Lost::Pipe(errno)),
            }
        }
        Ok(())
    }

    /// Whether something waits to be written.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether output of programs may be put in line.
    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() < WAITING_FOR_DATA
    }
}
