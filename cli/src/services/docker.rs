//! Whether a Docker engine answers, and which. Nothing here starts one or changes one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// Where an engine listens unless the environment says otherwise.
pub(crate) const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// The oldest API that the worker speaks, as (major, minor).
pub(crate) const API_VERSION_MIN: (u32, u32) = (1, 41);

const LIMIT: Duration = Duration::from_secs(3);

/// An engine that answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Engine {
    /// Such as `28.2.2`.
    pub(crate) version: String,
    /// Such as `1.50`.
    pub(crate) api_version: String,
}

impl Engine {
    /// Whether the worker can use it.
    pub(crate) fn is_new_enough(&self) -> bool {
        let mut numbers = self.api_version.split('.').map_while(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= API_VERSION_MIN
    }
}

/// Asks the engine at `host` (`unix://…` or `tcp://…`) for its version.
///
/// # Errors
/// When nothing answers there within a few seconds, as a sentence.
pub(crate) async fn probe(host: &str) -> anyhow::Result<Engine> {
    let asking = async {
        if let Some(path) = host.strip_prefix("unix://") {
            let stream = UnixStream::connect(Path::new(path)).await;
            ask(stream.with_context(|| format!("no Docker engine answers at {host}"))?).await
        } else if let Some(address) = host.strip_prefix("tcp://") {
            let stream = TcpStream::connect(address).await;
            ask(stream.with_context(|| format!("no Docker engine answers at {host}"))?).await
        } else {
            bail!("DOCKER_HOST is {host}; only unix:// and tcp:// addresses are understood");
        }
    };
    match tokio::time::timeout(LIMIT, asking).await {
        Ok(answer) => answer,
        Err(_elapsed) => bail!(
            "the Docker engine at {host} does not answer within {} s",
            LIMIT.as_secs()
        ),
    }
}

/// One request of the oldest HTTP: the answer ends where the connection does.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<Engine> {
    stream
        .write_all(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer).await?;
    read(&answer)
}

fn read(answer: &[u8]) -> anyhow::Result<Engine> {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .context("what answers is no Docker engine")?;
    serde_json::from_slice(&answer[end + 4..]).context("what answers is no Docker engine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_and_an_old_engine_refused() {
        let answer = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"Version\":\"20.10.24\",\"ApiVersion\":\"1.41\",\"Os\":\"linux\"}";
        let engine = read(answer).unwrap();
        let old = Engine {
            api_version: "1.9".to_owned(),
            ..engine.clone()
        };

        assert_eq!((engine.version.as_str(), engine.is_new_enough()), ("20.10.24", true));
        assert!(!old.is_new_enough());
        assert!(read(b"HTTP/1.0 200 OK\r\n\r\nhello").is_err());
    }
}
