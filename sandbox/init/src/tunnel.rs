//! Tunnels: connections of programs to a loopback port, handed to the worker byte by byte.
//!
//! Init does not look at what they say: who may go where is the worker's to decide. Here is only what keeps them from
//! harming anything else: their number, their windows, and that none outlives the last run.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;

use bytes::{Buf, Bytes};
use hothouse_protocol::{FRAME_COST, FromInit, TUNNEL_BIT, TUNNEL_WINDOW, TUNNELS_MAX, cost};
use nix::poll::{PollFd, PollFlags};

use crate::connection::{Connection, Lost};
use crate::whatever;

// A flood of connections must not keep the loop from everything else.
const ACCEPTS_AT_ONCE: usize = 64;
const CHUNK: usize = 32 * 1024;
const DISCARDS_MAX: usize = 16;

/// The ports and what is connected to them.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    listeners: Vec<(u16, TcpListener)>,
    open: BTreeMap<u32, Tunnel>,
    opened: u32,
}

/// What a turn of init's loop found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Whether a program is there.
    pub(crate) has_runs: bool,
    /// Whether a connection waits at a port.
    pub(crate) has_knocked: bool,
}

impl Tunnels {
    /// Listens at these ports, as far as that is possible: a sandbox without a loopback interface has no way out.
    pub(crate) fn listen(&mut self, ports: &[u16]) {
        let listener = |port: &u16| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok()?;
            listener.set_nonblocking(true).ok()?;
            Some((*port, listener))
        };
        self.listeners = ports.iter().filter_map(listener).collect();
    }

    /// The ports at which it listens.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.listeners.iter().map(|(port, _)| *port).collect()
    }

    /// What the worker sent for a tunnel. One that is over gets nothing and harms nobody.
    pub(crate) fn push(&mut self, stream: u32, data: Bytes, is_end: bool) -> Result<(), Lost> {
        match self.open.get_mut(&stream) {
            Some(tunnel) => tunnel.push(data, is_end),
            None => Ok(()),
        }
    }

    /// More credit for what comes out of a tunnel.
    pub(crate) fn grant(&mut self, stream: u32, credit: u32) {
        if let Some(tunnel) = self.open.get_mut(&stream) {
            tunnel.credit = tunnel.credit.saturating_add(credit);
        }
    }

    /// The worker closed a tunnel. What it sent before still reaches the program.
    pub(crate) fn close(&mut self, stream: u32) {
        if let Some(tunnel) = self.open.get_mut(&stream) {
            tunnel.is_closed = true;
        }
    }

    /// What to wait for when somebody may knock.
    pub(crate) fn doors(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listeners = self.listeners.iter();
        listeners.map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
    }

    /// What to wait for besides.
    pub(crate) fn watch<'a>(&'a self, has_room: bool, fds: &mut Vec<PollFd<'a>>) {
        for tunnel in self.open.values() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, tunnel.may_read(has_room));
            flags.set(PollFlags::POLLOUT, !tunnel.queue.is_empty());
            if !flags.is_empty() {
                fds.push(PollFd::new(tunnel.socket.as_fd(), flags));
            }
        }
    }

    /// Moves what can be moved without waiting. Without a run nothing is opened and nothing stays open. Only when somebody
    /// knocked: the kernel makes a socket first and then looks whether there is anybody for it.
    pub(crate) fn go_on(&mut self, now: Now, connection: &mut Connection, buffer: &mut [u8]) -> Result<(), Lost> {
        let Now { has_runs, has_knocked } = now;
        if !has_runs {
            for (stream, _) in std::mem::take(&mut self.open) {
                connection.send(FromInit::Close { stream })?;
            }
        }
        if has_knocked {
            self.accept(has_runs, connection)?;
        }
        let mut over = Vec::new();
        for (stream, tunnel) in &mut self.open {
            match tunnel.go_on(*stream, connection, buffer)? {
                Stage::Open => {}
                Stage::Ended => over.push(*stream),
                Stage::Broken => {
                    connection.send(FromInit::Close { stream: *stream })?;
                    over.push(*stream);
                }
            }
        }
        for stream in over {
            self.open.remove(&stream);
        }
        Ok(())
    }

    fn accept(&mut self, has_runs: bool, connection: &mut Connection) -> Result<(), Lost> {
        for (port, listener) in &self.listeners {
            for _ in 0..ACCEPTS_AT_ONCE {
                let Ok((socket, _)) = listener.accept() else { break };
                if !has_runs || self.open.len() >= TUNNELS_MAX || socket.set_nonblocking(true).is_err() {
                    continue;
                }
                // Small answers must not wait for more; without it they are only slower.
                whatever(socket.set_nodelay(true));
                // Numbers come round after two thousand million connections.
                self.opened = self.opened.wrapping_add(1);
                let stream = self.opened | TUNNEL_BIT;
                self.open.insert(stream, Tunnel::new(socket));
                connection.send(FromInit::Open { stream, port: *port })?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// Both ends know that it is over.
    Ended,
    /// The connection failed; the worker must hear of it.
    Broken,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the two ways of a tunnel end apart")]
struct Tunnel {
    socket: TcpStream,
    /// What may be sent to the worker.
    credit: u32,
    is_read: bool,
    queue: VecDeque<(Bytes, u32)>,
    outstanding: u32,
    owed: u32,
    /// Nothing more comes from the worker.
    is_ended: bool,
    is_shut: bool,
    /// The worker has forgotten it.
    is_closed: bool,
}

impl Tunnel {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            credit: TUNNEL_WINDOW,
            is_read: false,
            queue: VecDeque::new(),
            outstanding: 0,
            owed: 0,
            is_ended: false,
            is_shut: false,
            is_closed: false,
        }
    }

    fn push(&mut self, data: Bytes, is_end: bool) -> Result<(), Lost> {
        if self.is_ended {
            return Ok(());
        }
        self.is_ended = is_end;
        if !data.is_empty() {
            let cost = cost(data.len());
            self.outstanding = self.outstanding.saturating_add(cost);
            if self.outstanding > TUNNEL_WINDOW {
                return Err(Lost::OverWindow);
            }
            self.queue.push_back((data, cost));
        }
        Ok(())
    }

    fn may_read(&self, has_room: bool) -> bool {
        !self.is_read && !self.is_closed && has_room && self.credit > FRAME_COST
    }

    fn go_on(&mut self, stream: u32, connection: &mut Connection, buffer: &mut [u8]) -> Result<Stage, Lost> {
        let stands = self.write();
        if self.is_closed {
            if stands && !self.queue.is_empty() {
                return Ok(Stage::Open);
            }
            // A connection that is closed with bytes unread resets the other end, which may not have read ours then.
            for _ in 0..DISCARDS_MAX {
                if !self.socket.read(buffer).is_ok_and(|len| len > 0) {
                    break;
                }
            }
            return Ok(Stage::Ended);
        }
        if !stands {
            return Ok(Stage::Broken);
        }
        let is_worth_it = self.owed > TUNNEL_WINDOW / 4 || (self.owed > 0 && self.queue.is_empty());
        if is_worth_it && !self.is_ended {
            let credit = std::mem::take(&mut self.owed);
            connection.send(FromInit::Credit { stream, credit })?;
        }
        if self.may_read(connection.has_room()) {
            let room = (self.credit - FRAME_COST) as usize;
            let room = room.min(CHUNK).min(buffer.len());
            match self.socket.read(buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => self.is_read = true,
                Ok(len) => {
                    let data = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                    self.credit -= cost(len);
                    connection.send(FromInit::Data {
                        stream,
                        data,
                        is_end: false,
                    })?;
                }
                Err(error) if is_later(&error) => {}
                Err(_) => return Ok(Stage::Broken),
            }
            if self.is_read {
                connection.send(FromInit::Data {
                    stream,
                    data: Bytes::new(),
                    is_end: true,
                })?;
            }
        }
        let is_over = self.is_read && self.is_shut;
        Ok(if is_over { Stage::Ended } else { Stage::Open })
    }

    /// Writes as much as the program takes; whether the connection still stands.
    fn write(&mut self) -> bool {
        while let Some((data, cost)) = self.queue.front_mut() {
            if data.is_empty() {
                self.outstanding -= *cost;
                self.owed += *cost;
                self.queue.pop_front();
                continue;
            }
            match self.socket.write(data) {
                Ok(len) => data.advance(len),
                Err(error) if is_later(&error) => return true,
                Err(_) => return false,
            }
        }
        if self.is_ended && !self.is_shut {
            self.is_shut = true;
            // It fails when the program is gone, which shows when it is read.
            whatever(self.socket.shutdown(Shutdown::Write));
        }
        true
    }
}

fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Tunnel, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (Tunnel::new(socket), program)
    }

    #[test]
    fn what_the_worker_sends_arrives_and_ends() {
        let (mut tunnel, mut program) = pair();
        tunnel.push(Bytes::from_static(b"hello "), false).unwrap();
        tunnel.push(Bytes::from_static(b"you"), true).unwrap();
        tunnel.push(Bytes::from_static(b"too late"), false).unwrap();
        assert!(tunnel.write() && tunnel.is_shut);
        let mut text = String::new();
        program.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello you");
        assert_eq!((tunnel.outstanding, tunnel.owed), (0, cost(6) + cost(3)));
    }

    #[test]
    fn more_than_the_window_ends_the_connection() {
        let (mut tunnel, _program) = pair();
        let data = Bytes::from(vec![0; 32 * 1024]);
        let mut sent = 0;
        while tunnel.push(data.clone(), false).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 3);
    }

    #[test]
    fn a_program_that_is_gone_breaks_the_tunnel_only() {
        let (mut tunnel, program) = pair();
        drop(program);
        let mut stands = true;
        for _ in 0..100 {
            tunnel.push(Bytes::from_static(b"x"), false).unwrap();
            stands = tunnel.write();
            if !stands {
                break;
            }
            std::thread::yield_now();
        }
        assert!(!stands);
    }

    #[test]
    fn a_port_that_is_taken_is_not_listed() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut tunnels = Tunnels::default();
        tunnels.listen(&[taken.local_addr().unwrap().port()]);
        assert!(tunnels.ports().is_empty());
    }
}
