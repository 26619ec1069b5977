//! The three parts of Hothouse inside this process.
//!
//! Each reads its own configuration, as it does alone: documented defaults, then a file, then the environment. What `up`
//! knows better than anybody, such as the address of its private Postgres, comes last and wins.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use common::clock::Clock;
use common::config;
use common::health::Health;
use common::lifecycle::Lifecycle;
use common::store::Store;
use common::telemetry;

use super::sandboxes::Sandboxes;

/// What the parts need to know of this machine; all else is their own configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) postgres_url: String,
    pub(crate) redis_url: String,
    pub(crate) admin_key: String,
    pub(crate) sandboxes: Sandboxes,
    /// The folder of artifacts.
    pub(crate) objects: PathBuf,
    /// A file with settings of any part.
    pub(crate) file: Option<PathBuf>,
}

impl Settings {
    /// The configuration of one part.
    fn load<S: config::Settings>(&self) -> anyhow::Result<S> {
        Ok(config::load(self.file.as_deref(), self.variables())?)
    }

    /// The process's environment, and on top of it what this machine's servers are.
    fn variables(&self) -> Vec<(String, String)> {
        let mut own = vec![
            ("HTTP__ADDRESS", self.listen.to_string()),
            ("DATABASE__URL", self.postgres_url.clone()),
            ("REDIS__URL", self.redis_url.clone()),
            ("AUTH__ADMIN_KEY", self.admin_key.clone()),
            ("OBJECTS__URL", format!("file://{}", self.objects.display())),
        ];
        match &self.sandboxes {
            Sandboxes::Docker { host, image } => own.extend([
                ("SANDBOX__DRIVER", "docker".to_owned()),
                ("SANDBOX__DOCKER_HOST", host.clone()),
                ("SANDBOX__IMAGE", image.clone()),
            ]),
            Sandboxes::Bubblewrap { init } => own.extend([
                ("SANDBOX__DRIVER", "bubblewrap".to_owned()),
                ("SANDBOX__INIT", init.display().to_string()),
            ]),
        }
        let own = own.into_iter().map(|(name, value)| (format!("HOTHOUSE_{name}"), value));
        // The terminal is for what a person should see: unless somebody asks for more, warnings and errors.
        let quiet = ("HOTHOUSE_TELEMETRY__LOG".to_owned(), "warn".to_owned());
        std::iter::once(quiet).chain(config::environment()).chain(own).collect()
    }
}

/// Migrates, then starts the parts on the lifecycle. Answers which providers of models are set up.
///
/// # Errors
/// When a setting or a migration is wrong, or the address has been taken.
pub(crate) async fn start(settings: &Settings, lifecycle: &Lifecycle) -> anyhow::Result<Vec<String>> {
    let api: api::Config = settings.load()?;
    let worker: worker::Config = settings.load()?;
    let scheduler: scheduler::Config = settings.load()?;
    telemetry::install(&worker.telemetry)?;
    let store = Store::open(&worker.database)?;
    store
        .migrate()
        .await
        .context("the database does not take this version's migrations")?;
    store.close().await;
    let providers = worker.model.providers().context("the [model] settings")?;
    let names = providers.names().map(str::to_owned).collect();
    let clock = Clock::system();
    let (working, scheduling) = (
        Health::new(worker.health.stall_max),
        Health::new(scheduler.health.stall_max),
    );
    let beside = vec![("worker", working.clone()), ("scheduler", scheduling.clone())];
    let server = api::Server::bind_beside(api, clock.clone(), lifecycle, beside).await?;
    let serving = lifecycle.clone();
    lifecycle.spawn("api", async move { server.serve(&serving).await });
    let worker = worker::run(worker, clock.clone(), lifecycle.clone(), working);
    lifecycle.spawn("worker", worker);
    let scheduler = scheduler::run(scheduler, clock, lifecycle.clone(), scheduling);
    lifecycle.spawn("scheduler", scheduler);
    Ok(names)
}
