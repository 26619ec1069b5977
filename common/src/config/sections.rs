//! The sections that all processes share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Secret};

/// `[database]`: Postgres.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// `postgres://user:password@host:port/name`.
    pub url: Secret,
    /// A file whose content is the URL; used when `url` is empty.
    pub url_file: Option<PathBuf>,
    /// Most connections of this process, besides up to 24 that it keeps for accepting, claiming, ending and reading jobs and turns.
    pub connections_max: u32,
    /// How long a request waits for a connection before it is answered with 503.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// How long a query may take before its connection is held to be dead.
    #[serde(with = "humantime_serde")]
    pub query_timeout: Duration,
}

impl Database {
    /// The URL, from the setting or its file.
    ///
    /// # Errors
    /// [`Error::SecretFile`] when the file cannot be read, [`Error::Invalid`] when neither is set.
    pub fn resolved_url(&self) -> Result<Secret, Error> {
        resolve(&self.url, self.url_file.as_ref(), "database.url")
    }
}

/// `[redis]`: the dispatch index.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// `redis://:password@host:port/`.
    pub url: Secret,
    /// A file whose content is the URL; used when `url` is empty.
    pub url_file: Option<PathBuf>,
    /// First part of every key.
    pub prefix: String,
    /// Number of shards; the same for every process, and never changed while jobs are open.
    pub shards: u16,
    /// Most pooled connections of this process.
    pub connections_max: usize,
    /// How long a command may take.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
}

impl Redis {
    /// The URL, from the setting or its file.
    ///
    /// # Errors
    /// As [`Database::resolved_url`].
    pub fn resolved_url(&self) -> Result<Secret, Error> {
        resolve(&self.url, self.url_file.as_ref(), "redis.url")
    }
}

/// `[leases]`: the timed right to work on a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leases {
    /// How long a lease holds without a heartbeat.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// Time between two heartbeats.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long a sandbox runs on after the last renewal it heard of. Below `ttl`, so that a frozen worker's job is
    /// dead before its successor starts.
    #[serde(with = "humantime_serde")]
    pub run_on: Duration,
    /// Most dispatched jobs per tenant, queue and class; the rest stay in Postgres until there is room.
    pub dispatched_max: u32,
    /// Most lanes (queue and class) of one tenant that have such jobs; those of others stay in Postgres until half of
    /// these are empty.
    pub lanes_max: u32,
}

impl Leases {
    /// Refuses times that would let two attempts overlap.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn validate(&self) -> Result<(), Error> {
        if self.ttl < self.heartbeat * 3 {
            return Err(Error::Invalid(
                "leases.ttl must be at least three times leases.heartbeat".to_owned(),
            ));
        }
        if self.run_on >= self.ttl {
            return Err(Error::Invalid("leases.run_on must be below leases.ttl".to_owned()));
        }
        if self.dispatched_max == 0 || self.lanes_max == 0 {
            return Err(Error::Invalid(
                "leases.dispatched_max and leases.lanes_max must be at least 1".to_owned(),
            ));
        }
        Ok(())
    }
}

/// `[health]`: what counts as progress.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// How long a part may owe progress before the process is not ready.
    #[serde(with = "humantime_serde")]
    pub stall_max: Duration,
}

impl Health {
    /// Refuses a bound that a healthy process would miss.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn validate(&self, leases: &Leases) -> Result<(), Error> {
        // An idle claim loop looks once a second.
        if self.stall_max < leases.heartbeat * 2 || self.stall_max < Duration::from_secs(2) {
            return Err(Error::Invalid(
                "health.stall_max must be at least 2s and twice leases.heartbeat".to_owned(),
            ));
        }
        Ok(())
    }
}

/// An address where a process listens; empty is nowhere. `name` is the setting's.
///
/// # Errors
/// [`Error::Invalid`] when it is not an IP address with a port.
pub fn address(text: &str, name: &str) -> Result<Option<SocketAddr>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| Error::Invalid(format!("{name} must be an IP address with a port, or empty"));
    text.parse().map(Some).map_err(invalid)
}

fn resolve(value: &Secret, file: Option<&PathBuf>, name: &str) -> Result<Secret, Error> {
    match file {
        Some(path) if value.is_empty() => match std::fs::read_to_string(path) {
            Ok(text) => Ok(Secret::from(text.trim().to_owned())),
            Err(source) => Err(Error::SecretFile {
                path: path.clone(),
                source,
            }),
        },
        _ if value.is_empty() => Err(Error::Invalid(format!("{name} is not set"))),
        _ => Ok(value.clone()),
    }
}
