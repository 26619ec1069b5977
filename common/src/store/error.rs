//! What a query may fail with.

use tokio::time::error::Elapsed;

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may work later.
    Transient,
    /// The data is refused, and always will be.
    Data,
    /// The caller does not hold what it writes to.
    LeaseLost,
    /// A fault of ours.
    Bug,
}

/// A failed query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres is away, restarting, full or has no connection to spare.
    #[error("postgres is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Postgres refuses the values: a broken constraint, or text that it cannot hold.
    #[error("postgres refuses the data: {message}")]
    Data {
        /// The constraint's name, where there is one.
        constraint: Option<String>,
        /// What Postgres says.
        message: String,
    },
    /// The row is not in the expected state any more.
    #[error("the lease is lost")]
    LeaseLost,
    /// A row holds what this version cannot read.
    #[error("a row cannot be read: {0}")]
    Corrupt(String),
    /// Anything else.
    #[error("query failed")]
    Query(#[source] sqlx::Error),
}

impl Error {
    /// What a caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Unavailable(_) => Class::Transient,
            Self::Data { .. } => Class::Data,
            Self::LeaseLost => Class::LeaseLost,
            Self::Corrupt(_) | Self::Query(_) => Class::Bug,
        }
    }

    /// Whether it was ended because it and others waited for each other: nothing was done, and it may be tried again at once.
    pub fn is_deadlock(&self) -> bool {
        let Self::Unavailable(sqlx::Error::Database(error)) = self else {
            return false;
        };
        error.code().as_deref() == Some("40P01")
    }

    /// Whether a unique constraint was broken.
    pub fn is_conflict(&self, name: &str) -> bool {
        matches!(self, Self::Data { constraint: Some(constraint), .. } if constraint == name)
    }
}

impl From<Elapsed> for Error {
    fn from(_: Elapsed) -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            sqlx::Error::Database(database) => {
                // Classes as in PostgreSQL's appendix A: 22 data exception, 23 integrity constraint; 08 connection,
                // 25 read-only transaction (a replica), 40 rollback, 53 resources, 57 operator, 58 system, 55P03 lock.
                let code = database.code().unwrap_or_default();
                match code.get(..2).unwrap_or_default() {
                    "22" | "23" => Self::Data {
                        constraint: database.constraint().map(str::to_owned),
                        message: database.message().to_owned(),
                    },
                    "08" | "25" | "40" | "53" | "55" | "57" | "58" => Self::Unavailable(error),
                    _ => Self::Query(error),
                }
            }
            _ => Self::Query(error),
        }
    }
}
