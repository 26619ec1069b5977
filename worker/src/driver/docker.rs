//! The docker driver: each sandbox is a container of its own, driven over its attached stdin and stdout.
//!
//! Created, attached, then started, in this order: no byte of init is missed, and with `StdinOnce` the container's
//! input ends when the connection does. So a worker that is killed takes its sandboxes with it: init sees the end of
//! its input and exits, and `AutoRemove` deletes the container.
//!
//! No `docker exec` anywhere: it costs 50 ms, and a client that goes away leaves its process running.
//!
//! # Not here
//! What the container may do is [`container`]; who decides how many there are is [`crate::pool`].

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use bollard::{ClientVersion, Docker};
use chrono::{DateTime, Utc};
use common::clock::Clock;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Error, Found, Pipe, SandboxDriver, Spec};

mod container;
mod error;
mod pipe;

use container::label;

const NAME: &str = "docker";

/// The oldest engine that knows all that [`container`] asks for: Docker 20.10.
const API_MIN: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 41,
};

/// How the engine is reached and what it runs containers with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Its address (`unix:///…`, `tcp://…`); without one, `DOCKER_HOST` or the system's own engine.
    pub host: Option<String>,
    /// Its runtime for sandboxes, such as `runsc`; without one, the engine's default.
    pub runtime: Option<String>,
    /// How long it may take to answer one call.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: None,
            runtime: None,
            timeout: Duration::from_mins(1),
        }
    }
}

/// Starts sandboxes as containers of a Docker engine.
#[derive(Debug)]
pub struct DockerDriver {
    settings: Settings,
    boot: String,
    clock: Clock,
    // Made at the first use, so that a worker starts while its engine is away.
    client: OnceCell<Docker>,
    warned: Mutex<BTreeSet<String>>,
}

impl DockerDriver {
    /// A driver for an engine, which need not answer yet.
    pub fn new(settings: Settings) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            settings,
            boot: boot.trim().to_owned(),
            clock: Clock::system(),
            client: OnceCell::new(),
            warned: Mutex::default(),
        }
    }

    async fn client(&self) -> Result<&Docker, Error> {
        self.client.get_or_try_init(|| connect(&self.settings)).await
    }

    async fn start_container(&self, spec: &Spec) -> Result<Pipe, Error> {
        let docker = self.client().await?;
        let name = container::name(spec.id);
        let body = container::body(spec, &self.settings, &self.boot, self.clock.now());
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let created = docker
            .create_container(Some(options), body)
            .await
            .map_err(|e| error::create(spec, e))?;
        for warning in self.new_warnings(created.warnings) {
            tracing::warn!(%warning, "the Docker engine does not do all that is asked of it for sandboxes");
        }
        let pipe = attach_and_start(docker, &name, spec.id).await;
        if pipe.is_err() {
            // A container that never ran is not removed by the engine itself.
            if let Err(e) = remove(docker, spec.id).await {
                tracing::warn!(sandbox_id = %spec.id, error = %e, "a container that did not start is left to the reaper");
            }
        }
        pipe.map_err(|e| error::start(spec.id, e))
    }

    /// What the engine warns of and was not heard to before. A limit that it cannot set, such as that of swap, it leaves
    /// out with no more than this.
    fn new_warnings(&self, warnings: Vec<String>) -> Vec<String> {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        warnings
            .into_iter()
            .filter(|warning| warned.insert(warning.clone()))
            .collect()
    }

    async fn list_containers(&self) -> Result<Vec<Found>, Error> {
        let filters = HashMap::from([("label", vec![label::SANDBOX])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self
            .client()
            .await?
            .list_containers(Some(options))
            .await
            .map_err(|e| error::unavailable(&e))?;
        Ok(containers
            .into_iter()
            .filter_map(|container| found(&container.labels?))
            .collect())
    }
}

impl SandboxDriver for DockerDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, Error>> {
        self.start_container(spec).boxed()
    }

    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            remove(self.client().await?, id)
                .await
                .map_err(|e| error::destroy(id, e))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        self.list_containers().boxed()
    }

    fn image_id<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<Option<String>, Error>> {
        async move {
            match self.client().await?.inspect_image(image).await {
                Ok(found) => Ok(found.id),
                Err(e) if error::is_gone(&e) => Ok(None),
                Err(e) => Err(error::unavailable(&e)),
            }
        }
        .boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            let ping = self.client().await?.ping().await;
            ping.map(drop).map_err(|e| error::unavailable(&e))
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.ping()
    }
}

async fn connect(settings: &Settings) -> Result<Docker, Error> {
    let docker = match &settings.host {
        Some(host) => Docker::connect_with_host(host),
        None => Docker::connect_with_defaults(),
    }
    .map_err(|e| error::unavailable(&e))?
    .with_timeout(settings.timeout);
    // The library speaks a newer version than many engines, and those refuse it.
    let docker = docker.negotiate_version().await.map_err(|e| error::unavailable(&e))?;
    if docker.client_version() < API_MIN {
        return Err(Error::Unavailable {
            driver: NAME,
            reason: format!(
                "the engine speaks API {}, and {API_MIN} is needed: install Docker 20.10 or newer",
                docker.client_version()
            ),
        });
    }
    Ok(docker)
}

async fn attach_and_start(docker: &Docker, name: &str, id: Uuid) -> Result<Pipe, bollard::errors::Error> {
    let options = AttachContainerOptionsBuilder::new()
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .stream(true)
        .build();
    let attached = docker.attach_container(name, Some(options)).await?;
    docker.start_container(name, None::<StartContainerOptions>).await?;
    Ok(pipe::pipe(attached, id))
}

/// Kills and removes, and returns when it is gone; one that was gone before is a success.
async fn remove(docker: &Docker, id: Uuid) -> Result<(), bollard::errors::Error> {
    let name = container::name(id);
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(&name, Some(options)).await {
        Err(e) if error::is_gone(&e) => Ok(()),
        // Its init has exited, and the engine is about to remove it by itself.
        Err(e) if error::is_going(&e) => {
            let options = WaitContainerOptionsBuilder::new().condition("removed").build();
            match docker.wait_container(&name, Some(options)).next().await {
                Some(Err(e)) if !error::is_gone(&e) && !error::is_exit(&e) => Err(e),
                _ => Ok(()),
            }
        }
        other => other,
    }
}

/// Reads a sandbox back from its labels; a container with labels that are not ours is none of our business.
fn found(labels: &HashMap<String, String>) -> Option<Found> {
    Some(Found {
        id: labels.get(label::SANDBOX)?.parse().ok()?,
        worker_id: labels.get(label::WORKER)?.parse().ok()?,
        created_at: DateTime::parse_from_rfc3339(labels.get(label::CREATED)?)
            .ok()?
            .with_timezone(&Utc),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_s_warnings_are_told_once_each() {
        let driver = DockerDriver::new(Settings::default());
        let warnings = || vec!["limited without swap".to_owned(), "pids limit discarded".to_owned()];
        assert_eq!(driver.new_warnings(vec![warnings().remove(0)]).len(), 1);
        assert_eq!(driver.new_warnings(warnings()), ["pids limit discarded"]);
        assert!(driver.new_warnings(warnings()).is_empty());
    }
}
