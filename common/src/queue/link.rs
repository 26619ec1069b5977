//! The connection of the scripts that run all the time: kept open, shared, and pipelined.
//!
//! A pooled connection is asked whether it lives each time it is taken, which doubles the round trips of a script. This
//! one is believed until a command on it fails; then the next command connects anew.

use std::sync::{Arc, Mutex, PoisonError};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};

use super::{Error, Queue};

/// Where the present connection is kept.
#[derive(Default)]
pub(super) struct Links(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a failure of an old one does not end its successor.
    number: u64,
}

/// A handle on the shared connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    number: u64,
    kept: Arc<Mutex<Kept>>,
}

impl Links {
    fn present(&self) -> Option<Link> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.connection.clone().map(|connection| Link {
            connection,
            number: kept.number,
            kept: Arc::clone(&self.0),
        })
    }

    fn keep(&self, connection: MultiplexedConnection) -> Link {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.number += 1;
        kept.connection = Some(connection.clone());
        Link {
            connection,
            number: kept.number,
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
        let client = &self.inner.client;
        let made = client.get_multiplexed_async_connection_with_config(&config);
        match tokio::time::timeout(self.inner.response_timeout, made).await {
            Ok(made) => Ok(links.keep(made?)),
            Err(_) => Err(Error::Slow),
        }
    }
}

impl Link {
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
