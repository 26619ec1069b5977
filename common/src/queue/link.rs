//! The connection of the scripts that run all the time: kept open, shared, and pipelined.
//!
//! A pooled connection is asked whether it lives each time it is taken, which doubles the round trips of a script. This
//! one is believed until a command on it fails; then the next command connects anew.
//!
//! A server that was started anew, or a replica that took over, may hold an index that is behind. It has a run id of its
//! own, and the generation names the server that it was written to: whoever connects compares the two once
//! ([`Queue::own_link`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};

use super::{Error, Queue, Shard};

/// Where the present connection is kept.
#[derive(Default)]
pub(super) struct Links(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a failure of an old one does not end its successor.
    number: u64,
    /// The run id of the server that it leads to; empty where a server tells none.
    server: Arc<str>,
    /// Shards of which the server holds what was written to itself.
    own: BTreeSet<Shard>,
}

/// A handle on the shared connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    number: u64,
    server: Arc<str>,
    kept: Arc<Mutex<Kept>>,
}

impl Links {
    fn present(&self) -> Option<Link> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.connection.clone().map(|connection| Link {
            connection,
            number: kept.number,
            server: Arc::clone(&kept.server),
            kept: Arc::clone(&self.0),
        })
    }

    fn keep(&self, connection: MultiplexedConnection, server: Arc<str>) -> Link {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Kept {
            connection: Some(connection.clone()),
            number: kept.number + 1,
            server: Arc::clone(&server),
            own: BTreeSet::new(),
        };
        Link {
            connection,
            number: kept.number,
            server,
            kept: Arc::clone(&self.0),
        }
    }
}

impl Queue {
    /// The shared connection, made when there is none. It must not carry what blocks.
    pub(super) async fn link(&self) -> Result<Link, Error> {
        self.link_of(&self.inner.links).await
    }

    /// The one of those who read logs: what they are given is long, and no script waits behind it.
    pub(super) async fn reading_link(&self) -> Result<Link, Error> {
        self.link_of(&self.inner.reading_links).await
    }

    async fn link_of(&self, links: &Links) -> Result<Link, Error> {
        if let Some(link) = links.present() {
            return Ok(link);
        }
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.inner.response_timeout))
            .set_response_timeout(Some(self.inner.response_timeout));
        let made = async {
            let client = &self.inner.client;
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let server = run_id(&mut connection).await?;
            Ok(links.keep(connection, server))
        };
        match tokio::time::timeout(self.inner.response_timeout, made).await {
            Ok(made) => made,
            Err(_) => Err(Error::Slow),
        }
    }

    /// Forgets the connection, as when it breaks.
    #[cfg(feature = "testing")]
    pub fn hang_up(&self) {
        let mut kept = self.inner.links.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.connection = None;
    }

    /// The shared connection, if the index of a shard was written to the server that it leads to. One that was written to
    /// another, and came here by a file or a replica, may be older than what was done since.
    pub(super) async fn own_link(&self, shard: Shard) -> Result<Option<Link>, Error> {
        let mut link = self.link().await?;
        if link.is_known_own(shard) {
            return Ok(Some(link));
        }
        let written_to: Option<String> = redis::cmd("HGET")
            .arg(self.key(shard, "gen"))
            .arg("server")
            .query_async(&mut link)
            .await?;
        match written_to {
            Some(server) if server == link.server() => link.note_own(shard),
            Some(_) => return Ok(None),
            // There is no generation, which the scripts see for themselves.
            None => {}
        }
        Ok(Some(link))
    }
}

/// What tells one start of a server from all others. Who may not ask has to trust what is there.
async fn run_id(connection: &mut MultiplexedConnection) -> Result<Arc<str>, Error> {
    match redis::cmd("INFO")
        .arg("server")
        .query_async::<redis::InfoDict>(connection)
        .await
    {
        Ok(info) => Ok(info.get::<String>("run_id").unwrap_or_default().into()),
        Err(error) if matches!(error.kind(), redis::ErrorKind::Server(_)) && !error.is_unrecoverable_error() => {
            tracing::warn!(%error, "this server does not say whether it was started anew");
            Ok("".into())
        }
        Err(error) => Err(error.into()),
    }
}

impl Link {
    /// The run id of the server.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    fn is_known_own(&self, shard: Shard) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.number == self.number && kept.own.contains(&shard)
    }

    fn note_own(&self, shard: Shard) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.number == self.number {
            kept.own.insert(shard);
        }
    }

    /// Whatever is no answer of Redis's own says that the connection may be broken.
    fn judge<T>(&self, outcome: RedisResult<T>) -> RedisResult<T> {
        if let Err(error) = &outcome
            && (!matches!(error.kind(), redis::ErrorKind::Server(_)) || error.is_unrecoverable_error())
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.number == self.number {
                kept.connection = None;
            }
        }
        outcome
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let outcome = self.connection.send_packed_command(command).await;
            self.judge(outcome)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let outcome = self.connection.send_packed_commands(pipeline, offset, count).await;
            self.judge(outcome)
        })
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}
