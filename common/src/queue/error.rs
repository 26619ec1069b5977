//! What a command may fail with.

/// A failed command. Every one is passing: Redis holds no truth, so the caller goes on without it or tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis is away, or too slow.
    #[error("redis is not available")]
    Unavailable(#[source] redis::RedisError),
    /// No connection could be had in time.
    #[error("no redis connection")]
    Pool(#[source] deadpool_redis::PoolError),
    /// No connection answered in time: Redis stands still.
    #[error("redis does not answer")]
    Slow,
    /// Redis is new: running jobs register first, then it is opened for claims.
    #[error("redis was wiped and is being rebuilt")]
    Closed,
    /// The caller does not hold the attempt.
    #[error("the lease is lost")]
    LeaseLost,
    /// A script refused its arguments, or a reply has an unexpected shape: a fault of ours.
    #[error("redis refused the command")]
    Refused(#[source] redis::RedisError),
    /// A reply cannot be read.
    #[error("redis answered {0}")]
    Reply(String),
}

impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        match error.kind() {
            redis::ErrorKind::Server(redis::ServerErrorKind::ResponseError)
            | redis::ErrorKind::UnexpectedReturnType
            | redis::ErrorKind::Client => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

impl From<deadpool_redis::PoolError> for Error {
    fn from(error: deadpool_redis::PoolError) -> Self {
        Self::Pool(error)
    }
}
