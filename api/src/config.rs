//! The settings of the API. `config.default.toml` documents them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::config::{Database, Error, Health, Leases, Redis, Secret, Settings};
use common::objects;
use common::telemetry::Telemetry;
use serde::{Deserialize, Serialize};

/// Everything that the API process reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Postgres.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Leases, of which the API needs the limit of dispatched jobs and the times that make a worker dead.
    pub leases: Leases,
    /// What counts as progress.
    pub health: Health,
    /// Logs.
    pub telemetry: Telemetry,
    /// Where artifacts are.
    pub objects: objects::Settings,
    /// The server.
    pub http: Http,
    /// Who may call.
    pub auth: Auth,
    /// What may be submitted.
    pub submit: Submit,
}

/// `[http]`: the server.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where it listens; port 0 picks a free one.
    pub address: SocketAddr,
    /// Longest body of a request, bytes.
    pub body_max: usize,
    /// Longest input of one job, bytes.
    pub input_max: usize,
    /// Longest file that is put into a workspace, bytes.
    pub file_max: u64,
    /// Most bytes of all files of a workspace together after one was put into it.
    pub workspace_max: u64,
    /// How long a request may take.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Longest `?wait=`.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// Time between two heartbeats on an event stream.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A client that takes no byte for so long is disconnected.
    #[serde(with = "humantime_serde")]
    pub write_stall: Duration,
    /// Most connections at once.
    pub connections_max: usize,
    /// How long requests under way are given when the process stops.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Apply missing migrations at start.
    pub migrate: bool,
}

/// `[auth]`: who may call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// A key that is made known at start.
    pub admin_key: Secret,
    /// A file whose content is that key.
    pub admin_key_file: Option<PathBuf>,
    /// How long a key or tenant is believed without asking Postgres again.
    #[serde(with = "humantime_serde")]
    pub cache: Duration,
    /// Requests a second of a tenant that has no rate of its own.
    pub rate: u32,
}

impl Auth {
    /// The configured admin key, if there is one.
    ///
    /// # Errors
    /// When its file cannot be read, or it is too short to be a secret.
    pub fn resolved_admin_key(&self) -> Result<Option<Secret>, Error> {
        let key = match &self.admin_key_file {
            Some(path) if self.admin_key.is_empty() => match std::fs::read_to_string(path) {
                Ok(text) => Secret::from(text.trim().to_owned()),
                Err(source) => {
                    return Err(Error::SecretFile {
                        path: path.clone(),
                        source,
                    });
                }
            },
            _ => self.admin_key.clone(),
        };
        if key.is_empty() {
            return Ok(None);
        }
        if key.expose().len() < 16 {
            return Err(Error::Invalid(
                "auth.admin_key must have at least 16 characters".to_owned(),
            ));
        }
        Ok(Some(key))
    }
}

/// `[submit]`: what may be submitted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// Most jobs in one batch.
    pub batch_max: usize,
    /// Longest timeout of a job.
    #[serde(with = "humantime_serde")]
    pub timeout_max: Duration,
    /// Longest timeout of an agent run or a turn.
    #[serde(with = "humantime_serde")]
    pub agent_timeout_max: Duration,
    /// Most jobs in one group.
    pub group_jobs_max: usize,
    /// Longest wait of a group.
    #[serde(with = "humantime_serde")]
    pub group_timeout_max: Duration,
    /// How far ahead `run_at` may lie.
    #[serde(with = "humantime_serde")]
    pub run_at_max: Duration,
    /// How long one call that acts on many jobs goes on.
    #[serde(with = "humantime_serde")]
    pub many_budget: Duration,
}

/// Places of a group that an id tells apart.
const GROUP_JOBS_LIMIT: usize = 4_096;

/// Partitions and promises are made for this long at most.
const RUN_AT_LIMIT: Duration = Duration::from_hours(90 * 24);

impl Settings for Config {
    const DEFAULTS: &'static str = include_str!("config.default.toml");

    fn validate(&self) -> Result<(), Error> {
        let invalid = |sentence: &str| Err(Error::Invalid(sentence.to_owned()));
        self.leases.validate()?;
        self.health.validate(&self.leases)?;
        if self.http.input_max > self.http.body_max {
            return invalid("http.input_max must not be above http.body_max");
        }
        if self.submit.run_at_max > RUN_AT_LIMIT {
            return invalid("submit.run_at_max must not be above 90 days");
        }
        if self.submit.group_jobs_max == 0 || self.submit.group_jobs_max > GROUP_JOBS_LIMIT {
            return invalid("submit.group_jobs_max must be between 1 and 4096");
        }
        if self.submit.many_budget >= self.http.request_timeout {
            return invalid("submit.many_budget must be below http.request_timeout");
        }
        if self.http.heartbeat.is_zero() || self.http.write_stall < self.http.heartbeat {
            return invalid("http.write_stall must be at least http.heartbeat, which must not be zero");
        }
        if self.http.connections_max == 0 || self.submit.batch_max == 0 || self.auth.rate == 0 {
            return invalid("http.connections_max, submit.batch_max and auth.rate must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete_and_valid() {
        let config: Config = common::config::load(None, []).unwrap();
        assert_eq!(config.http.body_max, 16 << 20);
        assert_eq!(config.submit.run_at_max, RUN_AT_LIMIT);
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let environment = [("HOTHOUSE_HTTP__INPUT_MAX".to_owned(), "99999999".to_owned())];
        let error = common::config::load::<Config>(None, environment).unwrap_err();
        assert!(error.to_string().contains("http.body_max"), "{error}");
    }
}
