//! What executors run on: the warm pool, the environments, the model providers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use common::cancel::Canceller;
use common::clock::Clock;
use common::ids::WorkerId;
use common::lifecycle::Lifecycle;
use common::objects::Objects;
use common::queue::Queue;
use common::store::Store;
use common::workspace::Workspaces;

use crate::config::{Config, Driver, Sandboxes};
use crate::driver::SandboxDriver;
use crate::driver::bubblewrap::{self, Bubblewrap};
use crate::driver::docker::{self, DockerDriver};
use crate::egress;
use crate::environment::{self, Environments};
use crate::executor::{Machine, Means};
use crate::gateway::Room;
use crate::model::Policy;
use crate::model::books::Books;
use crate::pool::{self, Asks, Pool};
use crate::sandbox;
use crate::verify::Bench;

/// How long an engine may take to say that it is there when the driver is to be chosen.
const PROBE: Duration = Duration::from_secs(3);

/// Opens everything but the pool; answers the driver too, with which [`fill`] starts it.
///
/// # Errors
/// When a setting is wrong, or the driver that was asked for cannot be used.
pub(crate) async fn open(
    config: &Config,
    store: &Store,
    queue: &Queue,
) -> anyhow::Result<(Machine, Option<Arc<dyn SandboxDriver>>)> {
    let providers = Arc::new(config.model.providers().context("the [model] settings")?);
    let objects = Objects::open(&config.objects)?;
    let machine = Machine {
        workspaces: Workspaces::new(store.clone(), objects.clone()),
        store: store.clone(),
        queue: queue.clone(),
        canceller: Canceller::new(store.clone(), queue.clone()),
        pool: None,
        environments: Arc::new(environments(&config.sandbox)?),
        objects,
        providers,
        egress: Arc::new(means(&config.egress)?),
        policy: Policy::shared(config.model.retry.clone(), queue.clone()),
        books: Books::open(&config.model, store.clone()).context("the [model] settings")?,
        room: Room::default(),
        claude_code: config.claude_code,
    };
    Ok((machine, choose(&config.sandbox).await?))
}

/// Starts the pool. Only once Postgres names the worker: what an unknown worker leaves behind belongs to nobody whom a
/// reaper may judge.
pub(crate) fn fill(
    machine: &mut Machine,
    driver: Arc<dyn SandboxDriver>,
    config: &Sandboxes,
    worker_id: WorkerId,
    clock: &Clock,
    lifecycle: &Lifecycle,
) {
    let settings = pool::Settings {
        check_out_timeout: config.check_out_timeout,
        cleanup_interval: config.cleanup_interval,
        sandbox: demands(driver.as_ref()),
        ..pool::Settings::new(worker_id.uuid())
    };
    let asks = Asks::of(&machine.store, clock);
    machine.pool = Some(Pool::start(driver, &machine.environments, settings, asks, lifecycle));
}

fn means(settings: &egress::Settings) -> anyhow::Result<Means> {
    let file = &settings.certificates;
    let certificates = if file.as_os_str().is_empty() {
        Vec::new()
    } else {
        std::fs::read(file).with_context(|| format!("egress.certificates: cannot read {}", file.display()))?
    };
    let settings = settings.clone();
    let certificates = certificates.into();
    Ok(Means { settings, certificates })
}

/// What is asked of an init: bubblewrap without root has one user for init and jobs, and says so.
fn demands(driver: &dyn SandboxDriver) -> sandbox::Settings {
    sandbox::Settings {
        must_have_own_uid: driver.name() != "bubblewrap" || nix::unistd::geteuid().is_root(),
        ..sandbox::Settings::default()
    }
}

/// What [`crate::verify`] needs: a bench for each environment, or for the one of that name; and the driver's name.
///
/// # Errors
/// When a setting is wrong, the driver cannot be used, or there is no such environment.
pub async fn benches(settings: &Sandboxes, name: Option<&str>) -> anyhow::Result<(Vec<Bench>, &'static str)> {
    let driver = choose(settings)
        .await?
        .context("sandbox.driver is none: there is nothing to verify")?;
    driver.check().await?;
    let mut environments = environments(settings)?;
    if let Some(name) = name {
        environments.retain(|known, _| known == name);
        anyhow::ensure!(!environments.is_empty(), "there is no environment {name:?}");
    }
    if name.is_none() {
        // What comes along and is not built serves nobody, and has nothing to be broken.
        let mut missing = Vec::new();
        for (known, environment) in environments
            .iter()
            .filter(|(known, _)| known.as_str() != environment::DEFAULT)
        {
            if environment::comes_along(known) && driver.image_id(&environment.image()).await?.is_none() {
                missing.push(known.clone());
            }
        }
        environments.retain(|known, _| !missing.contains(known));
    }
    let bench = |environment| Bench::new(Arc::clone(&driver), environment, demands(driver.as_ref()));
    Ok((environments.into_values().map(bench).collect(), driver.name()))
}

fn environments(sandbox: &Sandboxes) -> anyhow::Result<Environments> {
    let folder = (!sandbox.environments.as_os_str().is_empty()).then_some(sandbox.environments.as_path());
    let mut environments = environment::load(folder).context("the environments")?;
    if !sandbox.image.is_empty()
        && let Some(default) = environments.remove(environment::DEFAULT)
    {
        let default = Arc::unwrap_or_clone(default).with_image(sandbox.image.clone());
        environments.insert(environment::DEFAULT.to_owned(), Arc::new(default));
    }
    Ok(environments)
}

async fn choose(sandbox: &Sandboxes) -> anyhow::Result<Option<Arc<dyn SandboxDriver>>> {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let docker = || {
        let settings = docker::Settings {
            host: text(&sandbox.docker_host),
            runtime: text(&sandbox.docker_runtime),
            ..docker::Settings::default()
        };
        Arc::new(DockerDriver::new(settings))
    };
    Ok(match sandbox.driver {
        Driver::None => None,
        // The engine may come later: the pool starts filling when it does.
        Driver::Docker => Some(docker()),
        Driver::Bubblewrap => Some(open_bubblewrap(&sandbox.init)?),
        Driver::Auto => {
            let docker = docker();
            match tokio::time::timeout(PROBE, docker.check()).await {
                Ok(Ok(())) => Some(docker),
                _ => Some(open_bubblewrap(&sandbox.init)?),
            }
        }
    })
}

fn open_bubblewrap(init: &Path) -> anyhow::Result<Arc<dyn SandboxDriver>> {
    let init = if init.as_os_str().is_empty() {
        beside_this_program()?
    } else {
        init.to_owned()
    };
    anyhow::ensure!(
        init.is_file(),
        "sandbox.init: there is no {}: build it with `make init`",
        init.display()
    );
    let all = std::env::temp_dir();
    bubblewrap::remove_left_behind(&all);
    let state = bubblewrap::state_folder(&all);
    let settings = bubblewrap::Settings {
        init,
        state,
        bwrap: PathBuf::from("bwrap"),
    };
    Ok(Arc::new(Bubblewrap::new(settings).context("the bubblewrap driver")?))
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where this program is")?;
    Ok(program.with_file_name("hothouse-init"))
}
