//! Bytes between a program and a server, counted and never for nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until};

use super::Settings;
use super::ledger::{Entry, Way};
use super::proxy::Ended;
use super::refusal::Refusal;
use crate::sandbox::{TunnelReader, TunnelWriter};

const READ_BYTES: usize = 32 * 1024;

/// One connection's bytes: counts them, and knows when the last of them moved.
struct Meter<'a> {
    state: Mutex<(&'a mut Entry, Instant)>,
    idle: Duration,
}

impl<'a> Meter<'a> {
    fn new(entry: &'a mut Entry, settings: &Settings) -> Self {
        Self {
            state: Mutex::new((entry, Instant::now())),
            idle: settings.idle_timeout,
        }
    }

    fn count(&self, way: Way, bytes: usize) -> Result<(), Refusal> {
        let mut state = self.state();
        state.1 = Instant::now();
        state.0.count(way, bytes)
    }

    fn state(&self) -> MutexGuard<'_, (&'a mut Entry, Instant)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when nothing has moved for too long.
    async fn idle(&self) -> Ended {
        loop {
            let until = self.state().1 + self.idle;
            if Instant::now() >= until {
                return Ended::Refused(Refusal::Idle);
            }
            sleep_until(until).await;
        }
    }
}

/// Moves bytes until both ways have ended.
pub(super) async fn both_ways(
    reader: &mut TunnelReader,
    writer: &TunnelWriter,
    server: TcpStream,
    settings: &Settings,
    entry: &mut Entry,
) -> Result<(), Ended> {
    let (mut from, mut to) = server.into_split();
    let meter = Meter::new(entry, settings);
    let up = async {
        while let Some(data) = reader.next().await? {
            send(&mut to, &data, &meter).await?;
        }
        to.shutdown().await.map_err(|_io| Ended::Gone)
    };
    let down = receive(&mut from, writer, &meter);
    tokio::select! {
        done = async { tokio::try_join!(up, down) } => done.map(drop),
        ended = meter.idle() => Err(ended),
    }
}

/// Sends exactly the body of a request and moves the answer until the server closes. A byte more is another request,
/// for which nobody has asked the policy.
pub(super) async fn one_request(
    reader: &mut TunnelReader,
    (first, body_bytes): (Bytes, u64),
    writer: &TunnelWriter,
    server: TcpStream,
    (settings, entry): (&Settings, &mut Entry),
) -> Result<(), Ended> {
    let (mut from, mut to) = server.into_split();
    let meter = Meter::new(entry, settings);
    let up = async {
        let mut left = body_bytes;
        let mut data = first;
        loop {
            let len = data.len() as u64;
            if len > left {
                return Ended::Refused(Refusal::SecondRequest);
            }
            left -= len;
            if let Err(ended) = send(&mut to, &data, &meter).await {
                return ended;
            }
            data = match reader.next().await {
                Ok(Some(data)) => data,
                // The answer may come all the same.
                Ok(None) => return std::future::pending().await,
                Err(_broken) => return Ended::Gone,
            };
        }
    };
    tokio::select! {
        done = receive(&mut from, writer, &meter) => done,
        ended = up => Err(ended),
        ended = meter.idle() => Err(ended),
    }
}

async fn send(to: &mut OwnedWriteHalf, data: &Bytes, meter: &Meter<'_>) -> Result<(), Ended> {
    meter.count(Way::Sent, data.len())?;
    to.write_all(data).await.map_err(|_io| Ended::Gone)
}

async fn receive(from: &mut OwnedReadHalf, writer: &TunnelWriter, meter: &Meter<'_>) -> Result<(), Ended> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let len = from.read(&mut buffer).await.map_err(|_io| Ended::Gone)?;
        let Some(data) = buffer.get(..len).filter(|data| !data.is_empty()) else {
            return Ok(writer.finish().await?);
        };
        meter.count(Way::Received, len)?;
        writer.write(Bytes::copy_from_slice(data)).await?;
    }
}
