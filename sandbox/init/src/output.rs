//! One output stream of a program on its way to the worker: its head live, the middle dropped, its tail at the end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use hothouse_protocol::{FRAME_COST, StreamTotals, WINDOW, cost};
use nix::errno::Errno;
use nix::unistd::read;

/// The most bytes that are read and sent at once.
pub(crate) const CHUNK: usize = 64 * 1024;

/// An output stream.
#[derive(Debug)]
pub(crate) struct Output {
    fd: Option<OwnedFd>,
    credit: u32,
    // None: everything is head.
    head_left: Option<u64>,
    tail: VecDeque<u8>,
    tail_max: usize,
    written: u64,
    sent: u64,
    is_discarded: bool,
    is_cut_told: bool,
}

/// What a closed stream has still to say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Bytes were dropped here.
    Cut(u64),
    /// A piece of the tail.
    Piece(Bytes),
    /// It must wait for credit.
    Blocked,
    /// Nothing more.
    Done,
}

impl Output {
    /// For what comes out of `fd`, which must not block.
    pub(crate) fn new(fd: Option<OwnedFd>, head_bytes: Option<u64>, tail_bytes: u32) -> Self {
        Self {
            fd,
            credit: WINDOW,
            head_left: head_bytes,
            tail: VecDeque::new(),
            tail_max: tail_bytes as usize,
            written: 0,
            sent: 0,
            is_discarded: false,
            is_cut_told: false,
        }
    }

    /// What to wait for, when there is something to read and a place for it. Past the head there always is one.
    pub(crate) fn wanted(&self, has_room: bool) -> Option<&OwnedFd> {
        let can_take = self.is_past_head() || (has_room && self.credit > FRAME_COST);
        self.fd.as_ref().filter(|_| can_take)
    }

    /// Reads once. What belongs to the head is returned, to be sent.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Option<Bytes> {
        let fd = self.fd.as_ref()?;
        let is_past_head = self.is_past_head();
        let room = if is_past_head {
            CHUNK
        } else {
            let head = self
                .head_left
                .map_or(CHUNK, |left| usize::try_from(left).unwrap_or(CHUNK));
            head.min(self.credit.saturating_sub(FRAME_COST) as usize).min(CHUNK)
        };
        let buffer = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty())?;
        let data = match read(fd.as_fd(), buffer) {
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            // A terminal whose last program ended says EIO.
            Ok(0) | Err(_) => {
                self.fd = None;
                return None;
            }
            Ok(len) => buffer.get(..len)?,
        };
        self.written += data.len() as u64;
        if is_past_head {
            self.keep(data);
            return None;
        }
        if let Some(left) = &mut self.head_left {
            *left = left.saturating_sub(data.len() as u64);
        }
        Some(self.spend(Bytes::copy_from_slice(data)))
    }

    /// Reads what is there, because nobody is left who could write more, and closes.
    pub(crate) fn read_last(&mut self, buffer: &mut [u8]) -> Option<Bytes> {
        let before = self.written;
        let head = self.read(buffer);
        if self.written == before {
            self.fd = None;
        }
        head
    }

    /// More credit.
    pub(crate) fn grant(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit);
    }

    /// Nobody reads any more: drop everything from now on.
    pub(crate) fn discard(&mut self) {
        self.is_discarded = true;
        self.tail = VecDeque::new();
    }

    /// Bytes that the program wrote.
    pub(crate) const fn written(&self) -> u64 {
        self.written
    }

    /// Whether nothing can come out any more.
    pub(crate) const fn is_closed(&self) -> bool {
        self.fd.is_none()
    }

    /// What a closed stream has still to say, piece by piece.
    pub(crate) fn rest(&mut self) -> Rest {
        if self.is_discarded {
            return Rest::Done;
        }
        let dropped = self.dropped();
        if dropped > 0 && !self.is_cut_told {
            self.is_cut_told = true;
            return Rest::Cut(dropped);
        }
        if self.tail.is_empty() {
            return Rest::Done;
        }
        let room = (self.credit.saturating_sub(FRAME_COST) as usize)
            .min(CHUNK)
            .min(self.tail.len());
        if room == 0 {
            return Rest::Blocked;
        }
        let piece = self.tail.drain(..room).collect();
        Rest::Piece(self.spend(piece))
    }

    /// The counts so far.
    pub(crate) fn totals(&self) -> StreamTotals {
        StreamTotals {
            bytes: self.written,
            sent: self.sent,
            dropped: self.dropped(),
        }
    }

    fn dropped(&self) -> u64 {
        self.written - self.sent - self.tail.len() as u64
    }

    fn is_past_head(&self) -> bool {
        self.is_discarded || self.head_left == Some(0)
    }

    fn keep(&mut self, data: &[u8]) {
        if self.is_discarded {
            return;
        }
        let kept = data.get(data.len().saturating_sub(self.tail_max)..).unwrap_or_default();
        let over = (self.tail.len() + kept.len()).saturating_sub(self.tail_max);
        self.tail.drain(..over);
        self.tail.extend(kept);
    }

    fn spend(&mut self, data: Bytes) -> Bytes {
        self.credit = self.credit.saturating_sub(cost(data.len()));
        self.sent += data.len() as u64;
        data
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn output(written: &[u8], head: Option<u64>, tail: u32) -> Output {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(written).unwrap();
        drop(writer);
        Output::new(Some(reader.into()), head, tail)
    }

    fn drain(output: &mut Output) -> (Vec<u8>, Vec<Rest>) {
        let (mut head, mut rest) = (Vec::new(), Vec::new());
        while !output.is_closed() {
            head.extend(output.read(&mut vec![0; CHUNK]).unwrap_or_default());
        }
        loop {
            match output.rest() {
                Rest::Done => return (head, rest),
                other => rest.push(other),
            }
        }
    }

    #[test]
    fn short_output_passes_whole() {
        let mut output = output(b"hello", Some(8), 8);
        assert_eq!(drain(&mut output), (b"hello".to_vec(), vec![]));
        assert_eq!(
            output.totals(),
            StreamTotals {
                bytes: 5,
                sent: 5,
                dropped: 0
            }
        );
    }

    #[test]
    fn what_fits_into_head_and_tail_is_not_cut() {
        let mut output = output(b"0123456789", Some(4), 6);
        let (head, rest) = drain(&mut output);
        assert_eq!(
            (head.as_slice(), rest),
            (&b"0123"[..], vec![Rest::Piece(Bytes::from_static(b"456789"))])
        );
    }

    #[test]
    fn the_middle_is_dropped_and_counted() {
        let mut output = output(b"0123456789", Some(2), 3);
        let (head, rest) = drain(&mut output);
        assert_eq!(head, b"01");
        assert_eq!(rest, [Rest::Cut(5), Rest::Piece(Bytes::from_static(b"789"))]);
        assert_eq!(
            output.totals(),
            StreamTotals {
                bytes: 10,
                sent: 5,
                dropped: 5
            }
        );
    }

    #[test]
    fn without_credit_the_head_waits_and_the_middle_does_not() {
        let mut output = output(b"0123456789", Some(4), 2);
        output.credit = FRAME_COST;
        assert!(output.wanted(true).is_none());
        output.grant(2);
        assert_eq!(output.read(&mut vec![0; CHUNK]).unwrap(), Bytes::from_static(b"01"));
        assert!(output.wanted(true).is_none());
        output.grant(1_000);
        assert_eq!(output.read(&mut vec![0; CHUNK]).unwrap(), Bytes::from_static(b"23"));
        output.credit = 0;
        assert!(output.wanted(false).is_some());
        assert_eq!(output.read(&mut vec![0; CHUNK]), None);
        assert_eq!(output.read(&mut vec![0; CHUNK]), None);
        assert!(output.is_closed());
        assert_eq!((output.rest(), output.rest()), (Rest::Cut(4), Rest::Blocked));
    }

    #[test]
    fn nothing_is_kept_for_a_reader_who_left() {
        let mut output = output(b"0123456789", None, 4);
        output.discard();
        assert_eq!(drain(&mut output), (vec![], vec![]));
        assert_eq!(
            output.totals(),
            StreamTotals {
                bytes: 10,
                sent: 0,
                dropped: 10
            }
        );
    }
}
