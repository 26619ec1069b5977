//! Tunnels, at the worker's end: connections of programs to a loopback port of their sandbox.
//!
//! They come only while somebody holds [`Tunnels`], and end with it: a tunnel belongs to an attempt. What they carry is
//! [`crate::egress`]'s and [`crate::gateway`]'s, by the port.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hothouse_protocol::{FRAME_COST, TUNNEL_WINDOW, ToInit, cost};
use tokio::sync::{Semaphore, mpsc};

use super::link::Link;

mod table;

pub(super) use table::Table;

const CHUNK: usize = 32 * 1024;
const GRANT_AT: u32 = TUNNEL_WINDOW / 4;

/// The most data frames that the window of a tunnel holds.
pub(super) const FRAMES: usize = (TUNNEL_WINDOW / FRAME_COST) as usize;

/// The right to the tunnels of a sandbox. Dropping it closes all of them, and more are refused.
#[derive(Debug)]
pub struct Tunnels {
    pub(super) link: Arc<Link>,
    pub(super) incoming: mpsc::Receiver<Tunnel>,
}

impl Tunnels {
    /// The next connection of a program; none when the sandbox is gone. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Tunnel> {
        self.incoming.recv().await
    }

    /// Serves every connection side by side, until this is dropped, which closes all of them.
    pub async fn serve<'a>(mut self, serve: impl Fn(Tunnel) -> BoxFuture<'a, ()>) -> Infallible {
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                tunnel = self.accept() => match tunnel {
                    Some(tunnel) => open.push(serve(tunnel)),
                    // The sandbox is gone, and whoever works in it says so.
                    None => return std::future::pending().await,
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.link.refuse_tunnels();
    }
}

/// A program's connection. It is closed when both halves are dropped.
#[derive(Debug)]
pub struct Tunnel {
    /// The port that the program connected to.
    pub port: u16,
    /// What the program sends.
    pub reader: TunnelReader,
    /// What it gets.
    pub writer: TunnelWriter,
}

/// A tunnel's place at the link.
#[derive(Debug)]
pub(super) struct Place {
    link: Arc<Link>,
    stream: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link.close_tunnel(self.stream);
    }
}

/// What comes through a tunnel.
#[derive(Debug)]
pub(super) enum Incoming {
    Data(Bytes),
    End,
}

/// The tunnel broke: the program, its sandbox, or the right to it is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel broke")]
pub struct Broken;

/// The half of a tunnel that a program writes to.
#[derive(Debug)]
pub struct TunnelReader {
    place: Arc<Place>,
    incoming: mpsc::Receiver<Incoming>,
    owed: u32,
    is_ended: bool,
}

impl TunnelReader {
    /// What the program sent next; none is its end. Cancel-safe.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        if self.is_ended {
            return Ok(None);
        }
        if self.owed >= GRANT_AT {
            let link = &self.place.link;
            // Nothing is forgotten when this is dropped while it waits for the place.
            let place = link.reserve().await.map_err(|_lost| Broken)?;
            let credit = std::mem::take(&mut self.owed);
            link.widen_tunnel(self.place.stream, credit);
            place.send(ToInit::TunnelCredit {
                stream: self.place.stream,
                credit,
            });
        }
        match self.incoming.recv().await {
            Some(Incoming::Data(data)) => {
                self.owed = self.owed.saturating_add(cost(data.len()));
                Ok(Some(data))
            }
            Some(Incoming::End) => {
                self.is_ended = true;
                Ok(None)
            }
            None => Err(Broken),
        }
    }
}

/// The half of a tunnel that a program reads from.
#[derive(Debug)]
pub struct TunnelWriter {
    place: Arc<Place>,
    credit: Arc<Semaphore>,
}

impl TunnelWriter {
    /// Sends to the program, in order; waits while it does not read.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn write(&self, data: impl Into<Bytes>) -> Result<(), Broken> {
        let mut data = data.into();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            let permits = self.credit.acquire_many(cost(piece.len())).await;
            permits.map_err(|_closed| Broken)?.forget();
            self.send(piece, false).await?;
        }
        Ok(())
    }

    /// Nothing follows this way.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn finish(&self) -> Result<(), Broken> {
        self.send(Bytes::new(), true).await?;
        self.place.link.end_tunnel(self.place.stream);
        Ok(())
    }

    async fn send(&self, data: Bytes, is_end: bool) -> Result<(), Broken> {
        let stream = self.place.stream;
        let sent = self.place.link.send(ToInit::Data { stream, data, is_end }).await;
        sent.map_err(|_lost| Broken)
    }
}

/// The two halves, from what the link keeps the other ends of.
pub(super) fn halves(
    link: &Arc<Link>,
    (stream, port): (u32, u16),
    incoming: mpsc::Receiver<Incoming>,
    credit: Arc<Semaphore>,
) -> Tunnel {
    let link = Arc::clone(link);
    let place = Arc::new(Place { link, stream });
    Tunnel {
        port,
        reader: TunnelReader {
            place: Arc::clone(&place),
            incoming,
            owed: 0,
            is_ended: false,
        },
        writer: TunnelWriter { place, credit },
    }
}

const _: () = assert!(CHUNK + (FRAME_COST as usize) < TUNNEL_WINDOW as usize);
