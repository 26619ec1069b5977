//! Settings of the scheduler. `config.default.toml` documents each.

use std::time::Duration;

use common::config::{self, Database, Error, Health, Leases, Redis, Settings};
use common::objects;
use common::telemetry::Telemetry;
use serde::{Deserialize, Serialize};

/// Everything that a scheduler is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Postgres.
    pub database: Database,
    /// The dispatch index.
    pub redis: Redis,
    /// The timed right to work on a job.
    pub leases: Leases,
    /// What counts as progress.
    pub health: Health,
    /// Logs.
    pub telemetry: Telemetry,
    /// Where artifacts and workspaces are.
    pub objects: objects::Settings,
    /// Leading and firing.
    pub scheduler: Scheduler,
    /// Daily partitions.
    pub partitions: Partitions,
    /// What is forgotten, and when.
    pub retention: Retention,
}

/// `[scheduler]`: leading and firing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// How long the leader's lease holds without a renewal.
    #[serde(with = "humantime_serde")]
    pub leader_ttl: Duration,
    /// Time between two renewals.
    #[serde(with = "humantime_serde")]
    pub leader_renew: Duration,
    /// Longest time between two looks for due schedules.
    #[serde(with = "humantime_serde")]
    pub fire_poll: Duration,
    /// Most schedules that are fired in one transaction.
    pub fire_batch: u32,
    /// Due times that are not older than this are always fired.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long a stopping scheduler may take.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Where `/healthz`, `/readyz` and `/metrics` are answered; empty is nowhere.
    pub health_address: String,
}

/// `[partitions]`: daily partitions.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partitions {
    /// Days ahead for which partitions are kept ready.
    pub ahead_days: u32,
}

/// `[retention]`: what is forgotten, and when.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Age after which a day of jobs is dropped; zero keeps all.
    #[serde(with = "humantime_serde")]
    pub jobs: Duration,
    /// Age after which an idempotency key may be used for another request.
    #[serde(with = "humantime_serde")]
    pub idempotency_keys: Duration,
    /// Age after which a worker that was not heard of is forgotten.
    #[serde(with = "humantime_serde")]
    pub workers: Duration,
    /// How long an archive of a workspace stays after a newer one has taken its place.
    #[serde(with = "humantime_serde")]
    pub workspace_archives: Duration,
}

/// What is due within 15 s is told of when it is saved; what is left covers clocks that differ and slow looks.
const FIRE_POLL_MAX: Duration = Duration::from_secs(10);

impl Settings for Config {
    const DEFAULTS: &'static str = include_str!("config.default.toml");

    fn validate(&self) -> Result<(), Error> {
        self.leases.validate()?;
        self.health.validate(&self.leases)?;
        config::address(&self.scheduler.health_address, "scheduler.health_address")?;
        let invalid = |message: &str| Err(Error::Invalid(message.to_owned()));
        let scheduler = &self.scheduler;
        if scheduler.leader_ttl < scheduler.leader_renew * 3 {
            return invalid("scheduler.leader_ttl must be at least three times scheduler.leader_renew");
        }
        if scheduler.leader_renew.is_zero() || scheduler.fire_poll.is_zero() {
            return invalid("scheduler.leader_renew and scheduler.fire_poll must not be zero");
        }
        if scheduler.fire_poll > FIRE_POLL_MAX {
            return invalid("scheduler.fire_poll must be at most 10s: of what is due later Postgres does not tell");
        }
        if scheduler.fire_batch == 0 {
            return invalid("scheduler.fire_batch must be at least 1");
        }
        if scheduler.grace < scheduler.leader_ttl * 2 {
            return invalid("scheduler.grace must be at least twice scheduler.leader_ttl, or a failover loses fires");
        }
        if !(1..=3650).contains(&self.partitions.ahead_days) {
            return invalid("partitions.ahead_days must be between 1 and 3650");
        }
        let kept = self.retention.jobs;
        if !kept.is_zero() && kept < self.retention.idempotency_keys {
            return invalid("retention.jobs must not be below retention.idempotency_keys, whose answers name the jobs");
        }
        if self.retention.workspace_archives < Duration::from_mins(10) {
            return invalid("retention.workspace_archives must be at least 10m: uploads and downloads take time");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config, Error> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config::load(None, variables)
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(load(&[]).unwrap().scheduler.leader_ttl, Duration::from_secs(3));
    }

    #[test]
    fn a_renewal_that_comes_too_seldom_is_refused() {
        let error = load(&[("HOTHOUSE_SCHEDULER__LEADER_RENEW", "2s")]).unwrap_err();
        assert!(error.to_string().contains("scheduler.leader_renew"), "{error}");
    }
}
