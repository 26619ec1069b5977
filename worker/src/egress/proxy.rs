//! One connection of a program, from its first byte to its last.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::egress::Destination;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client_hello::{self, HELLO_BYTES_MAX};
use super::ledger::{Entry, Ledger, Way};
use super::policy::{Policy, check_hello};
use super::refusal::Refusal;
use super::request::{self, Plain, Request};
use super::{Settings, dial, relay};
use crate::sandbox::{Tunnel, TunnelReader, TunnelWriter};

/// How a connection ended before its ends did.
pub(super) enum Ended {
    /// It is refused, or cut.
    Refused(Refusal),
    /// The program, its sandbox or the server is gone.
    Gone,
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<crate::sandbox::Broken> for Ended {
    fn from(_: crate::sandbox::Broken) -> Self {
        Self::Gone
    }
}

/// What connections of one attempt share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) settings: &'a Settings,
    pub(super) policy: &'a Policy,
}

/// Serves one connection to its end.
pub(super) async fn serve(tunnel: Tunnel, rules: Rules<'_>, ledger: &Ledger) {
    let (mut entry, admitted) = ledger.begin();
    let mut stream = Incoming {
        reader: tunnel.reader,
        buffer: BytesMut::new(),
    };
    let served = match admitted {
        Ok(()) => go(&mut stream, &tunnel.writer, rules, &mut entry).await,
        Err(refusal) => Err(refuse(&tunnel.writer, refusal).await),
    };
    if let Err(Ended::Refused(refusal)) = served {
        entry.refuse(refusal);
    }
}

async fn go(stream: &mut Incoming, writer: &TunnelWriter, rules: Rules<'_>, entry: &mut Entry) -> Result<(), Ended> {
    let head = match in_time(rules.settings.head_timeout, stream.head()).await {
        Ok(Some(head)) => head,
        // It connected and said nothing: nobody waits for an answer.
        Ok(None) => return Err(Ended::Gone),
        Err(Ended::Refused(refusal)) => return Err(refuse(writer, refusal).await),
        Err(gone) => return Err(gone),
    };
    let asked = match request::parse(&head) {
        Ok(asked) => asked,
        Err(refusal) => return Err(refuse(writer, refusal).await),
    };
    entry.asks(asked.method(), asked.destination());
    let opened = open(asked.destination(), rules, entry).await;
    let server = match opened {
        Ok(server) => server,
        Err(refusal) => return Err(refuse(writer, refusal).await),
    };
    match asked {
        Request::Connect(destination) => connect(stream, writer, server, &destination, rules, entry).await,
        Request::Plain(plain) => {
            entry.allow();
            forward(stream, writer, server, &plain, rules, entry).await
        }
    }
}

async fn open(destination: &Destination, rules: Rules<'_>, entry: &mut Entry) -> Result<TcpStream, Refusal> {
    rules.policy.check(destination)?;
    let (server, address) = dial::dial(destination, rules.settings).await?;
    entry.dialled(address);
    Ok(server)
}

/// A tunnel: nothing of it reaches the server before TLS has said where it goes.
async fn connect(
    stream: &mut Incoming,
    writer: &TunnelWriter,
    mut server: TcpStream,
    destination: &Destination,
    rules: Rules<'_>,
    entry: &mut Entry,
) -> Result<(), Ended> {
    writer
        .write(&b"HTTP/1.1 200 Connection established\r\n\r\n"[..])
        .await?;
    let hello = in_time(rules.settings.head_timeout, stream.hello()).await?;
    check_hello(&hello, destination)?;
    entry.allow();
    let first = stream.buffer.split().freeze();
    entry.count(Way::Sent, first.len())?;
    server.write_all(&first).await.map_err(|_io| Ended::Gone)?;
    relay::both_ways(&mut stream.reader, writer, server, rules.settings, entry).await
}

/// A plain request: its head written anew, exactly its body, and the answer until the server closes.
async fn forward(
    stream: &mut Incoming,
    writer: &TunnelWriter,
    mut server: TcpStream,
    plain: &Plain,
    rules: Rules<'_>,
    entry: &mut Entry,
) -> Result<(), Ended> {
    entry.count(Way::Sent, plain.head.len())?;
    server.write_all(&plain.head).await.map_err(|_io| Ended::Gone)?;
    let first = stream.buffer.split().freeze();
    relay::one_request(
        &mut stream.reader,
        (first, plain.body_bytes),
        writer,
        server,
        (rules.settings, entry),
    )
    .await
}

/// Answers with a refusal, and hands it back.
async fn refuse(writer: &TunnelWriter, refusal: Refusal) -> Ended {
    let text = format!("{refusal}\n");
    let answer = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Hothouse-Egress: {}\r\nConnection: close\r\n\r\n{text}",
        refusal.status(),
        text.len(),
        refusal.code(),
    );
    // A program that has gone does not hear it.
    if writer.write(answer).await.is_ok() {
        drop(writer.finish().await);
    }
    Ended::Refused(refusal)
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
    timeout(limit, work)
        .await
        .unwrap_or(Err(Ended::Refused(Refusal::TooSlow)))
}

/// What a program sends, and what of it was not used yet.
struct Incoming {
    reader: TunnelReader,
    buffer: BytesMut,
}

impl Incoming {
    /// Takes the head of the request off; none when there is nothing at all.
    async fn head(&mut self) -> Result<Option<Bytes>, Ended> {
        loop {
            if let Some(len) = request::head_len(&self.buffer)? {
                return Ok(Some(self.buffer.split_to(len).freeze()));
            }
            if !self.more().await? {
                let is_empty = self.buffer.is_empty();
                return if is_empty {
                    Ok(None)
                } else {
                    Err(Refusal::Malformed.into())
                };
            }
        }
    }

    /// Waits for the begin of TLS, which stays in the buffer.
    async fn hello(&mut self) -> Result<client_hello::ClientHello, Ended> {
        loop {
            match client_hello::parse(&self.buffer) {
                Ok(Some(hello)) => return Ok(hello),
                // Each record's head counts too.
                Ok(None) if self.buffer.len() > 2 * HELLO_BYTES_MAX => return Err(Refusal::NotTls.into()),
                Ok(None) => {}
                Err(_not_tls) => return Err(Refusal::NotTls.into()),
            }
            if !self.more().await? {
                return Err(Refusal::NotTls.into());
            }
        }
    }

    async fn more(&mut self) -> Result<bool, Ended> {
        let data = self.reader.next().await?;
        if let Some(data) = &data {
            self.buffer.extend_from_slice(data);
        }
        Ok(data.is_some())
    }
}
