//! Settings of the worker. `config.default.toml` documents each.

use std::path::PathBuf;
use std::time::Duration;

use common::config::{self, Database, Error, Health, Leases, Redis, Settings};
use common::objects;
use common::telemetry::Telemetry;
use serde::{Deserialize, Serialize};

use crate::{claude, egress, model};

/// Everything that a worker is told.
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
    /// Slots.
    pub worker: Worker,
    /// Sandboxes.
    pub sandbox: Sandboxes,
    /// The way out of sandboxes.
    pub egress: egress::Settings,
    /// Where artifacts go.
    pub objects: objects::Settings,
    /// Model providers.
    pub model: model::Settings,
    /// Claude Code.
    pub claude_code: claude::Settings,
}

/// `[worker]`: slots and what they are for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// A name for people; empty is the host's name.
    pub name: String,
    /// Jobs without a sandbox that may run at once.
    pub light_slots: u32,
    /// Jobs that may be in a sandbox at once; 0 is twice the number of processors.
    pub sandbox_slots: u32,
    /// Labels that jobs may require.
    pub labels: Vec<String>,
    /// Queues that it serves; empty is all of them.
    pub queues: Vec<String>,
    /// How long a stopping worker lets its attempts finish before it gives them back.
    #[serde(with = "humantime_serde")]
    pub drain: Duration,
    /// Where `/healthz`, `/readyz` and `/metrics` are answered; empty is nowhere.
    pub health_address: String,
}

/// How sandboxes are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Docker where an engine answers, else bubblewrap.
    Auto,
    /// Containers.
    Docker,
    /// Processes of this machine, for development.
    Bubblewrap,
    /// Not at all: this worker has light slots only.
    None,
}

/// `[sandbox]`: where jobs run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandboxes {
    /// How sandboxes are started.
    pub driver: Driver,
    /// Address of the Docker engine; empty is `DOCKER_HOST`, or the system's own.
    pub docker_host: String,
    /// The engine's runtime for sandboxes; empty is its default.
    pub docker_runtime: String,
    /// The init binary, for bubblewrap; empty looks beside this program.
    pub init: PathBuf,
    /// A folder of environments beside the built-in one; empty is none.
    pub environments: PathBuf,
    /// Image of the default environment; empty is the one that was built last.
    pub image: String,
    /// How long a job waits for a sandbox when none is warm.
    #[serde(with = "humantime_serde")]
    pub check_out_timeout: Duration,
    /// How often sandboxes of dead workers are looked for.
    #[serde(with = "humantime_serde")]
    pub cleanup_interval: Duration,
}

impl Worker {
    /// Sandbox slots, with the default worked out.
    pub fn sandbox_slots(&self) -> u32 {
        if self.sandbox_slots > 0 {
            return self.sandbox_slots;
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        u32::try_from(2 * processors).unwrap_or(2)
    }

    /// The name, with the default worked out.
    pub fn name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map_or_else(|_| "worker".to_owned(), |n| n.trim().to_owned())
    }
}

impl Settings for Config {
    const DEFAULTS: &'static str = include_str!("config.default.toml");

    fn validate(&self) -> Result<(), Error> {
        self.leases.validate()?;
        self.health.validate(&self.leases)?;
        config::address(&self.worker.health_address, "worker.health_address")?;
        let names = self.worker.labels.iter().chain(&self.worker.queues);
        if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
            let message =
                format!("worker.labels and worker.queues: {bad:?} is not lower case letters, digits, . _ or -");
            return Err(Error::Invalid(message));
        }
        if self.worker.light_slots == 0 && self.sandbox.driver == Driver::None {
            return Err(Error::Invalid(
                "worker.light_slots is 0 and sandbox.driver is none: nothing could run".to_owned(),
            ));
        }
        match self.egress.fault().or_else(|| self.claude_code.fault()) {
            Some(fault) => Err(Error::Invalid(fault.to_owned())),
            None => Ok(()),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let config: Config = config::load(None, []).unwrap();
        assert_eq!(config.worker.light_slots, 256);
        assert!(config.worker.sandbox_slots() >= 2);
    }

    #[test]
    fn a_label_with_a_comma_is_refused() {
        let variables = [("HOTHOUSE_WORKER__LABELS".to_owned(), "a b".to_owned())];
        assert!(config::load::<Config>(None, variables).is_err());
    }
}
