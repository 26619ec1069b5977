//! A program's input on its way from the worker.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use bytes::{Buf, Bytes};
use hothouse_protocol::{WINDOW, cost};
use nix::errno::Errno;
use nix::unistd::write;

// What a terminal takes for the end of its input.
const END_OF_TERMINAL: u8 = 4;

/// A program's input.
#[derive(Debug)]
pub(crate) struct Input {
    fd: Option<OwnedFd>,
    is_terminal: bool,
    queue: VecDeque<Piece>,
    outstanding: u32,
    owed: u32,
    is_ended: bool,
}

#[derive(Debug)]
struct Piece {
    rest: Bytes,
    cost: u32,
}

/// The worker sent more than its window.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverWindow;

impl Input {
    /// For a program that reads from the other end of `fd`, which must not block; none is the end at once.
    pub(crate) fn new(fd: Option<OwnedFd>, is_terminal: bool) -> Self {
        Self {
            fd,
            is_terminal,
            queue: VecDeque::new(),
            outstanding: 0,
            owed: 0,
            is_ended: false,
        }
    }

    /// Takes what the worker sent.
    pub(crate) fn push(&mut self, data: Bytes, is_end: bool) -> Result<(), OverWindow> {
        if self.is_ended {
            return Ok(());
        }
        self.is_ended = is_end;
        if !data.is_empty() {
            self.enqueue(data)?;
        }
        if is_end && self.is_terminal {
            self.queue.push_back(Piece {
                rest: Bytes::from_static(&[END_OF_TERMINAL]),
                cost: 0,
            });
        }
        self.flush();
        Ok(())
    }

    fn enqueue(&mut self, data: Bytes) -> Result<(), OverWindow> {
        let cost = cost(data.len());
        self.outstanding = self.outstanding.saturating_add(cost);
        if self.outstanding > WINDOW {
            return Err(OverWindow);
        }
        self.queue.push_back(Piece { rest: data, cost });
        Ok(())
    }

    /// What to wait for, when something waits to be written.
    pub(crate) fn wanted(&self) -> Option<&OwnedFd> {
        self.fd.as_ref().filter(|_| !self.queue.is_empty())
    }

    /// Writes as much as the program takes. A program that closed its input gets nothing and holds up nobody.
    pub(crate) fn flush(&mut self) {
        while let Some(piece) = self.queue.front_mut() {
            if let Some(fd) = &self.fd
                && !piece.rest.is_empty()
            {
                match write(fd.as_fd(), &piece.rest) {
                    Ok(len) => piece.rest.advance(len),
                    Err(Errno::EAGAIN) => return,
                    Err(Errno::EINTR) => {}
                    Err(_) => self.fd = None,
                }
                continue;
            }
            self.outstanding -= piece.cost;
            self.owed += piece.cost;
            self.queue.pop_front();
        }
        // A terminal stays open: it is the program's output too.
        if self.is_ended && !self.is_terminal {
            self.fd = None;
        }
    }

    /// Credit to give back to the worker, in useful portions.
    pub(crate) fn owed_credit(&mut self) -> Option<u32> {
        let is_worth_it = self.owed > WINDOW / 4 || (self.owed > 0 && self.queue.is_empty());
        is_worth_it.then(|| std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn input() -> (Input, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (Input::new(Some(writer.into()), false), reader)
    }

    #[test]
    fn input_arrives_and_ends() {
        let (mut input, mut reader) = input();
        input.push(Bytes::from_static(b"hello "), false).unwrap();
        input.push(Bytes::from_static(b"you"), true).unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello you");
        assert_eq!(input.owed_credit(), Some(cost(6) + cost(3)));
    }

    #[test]
    fn a_program_that_does_not_read_stops_the_worker_at_the_window() {
        let (mut input, _reader) = input();
        let piece = Bytes::from(vec![0; 32 * 1024]);
        let mut pieces = 0;
        while input.push(piece.clone(), false).is_ok() {
            pieces += 1;
        }
        // The window, and what fits into the pipe itself.
        let whole = WINDOW / cost(piece.len());
        assert!((whole..=whole + 3).contains(&pieces), "{pieces} of {whole}");
        assert!(input.wanted().is_some());
    }

    #[test]
    fn a_program_that_closed_its_input_holds_up_nobody() {
        let (mut input, reader) = input();
        drop(reader);
        for _ in 0..100 {
            input.push(Bytes::from(vec![0; 100 * 1024]), false).unwrap();
            assert_eq!(input.owed_credit(), Some(cost(100 * 1024)));
        }
    }
}
