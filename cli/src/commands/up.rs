//! `hothouse up`: start everything on this machine and stay until Ctrl-C.
//!
//! Order: the folder's lock, the address, the databases, the migrations, the sandboxes, the three parts, a sample job.
//! What was started ends in the opposite order, also when a later step fails.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::clock::Clock;
use common::lifecycle::Lifecycle;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use crate::globals::Globals;
use crate::output;
use crate::services::embedded::{self, Settings};
use crate::services::folder::{DataFolder, Locking, Running};
use crate::services::progress::{Step, say};
use crate::services::sandboxes::{Sandboxes, Wanted};
use crate::services::stores::{Ports, Stores};
use crate::services::{docker, ports, sample};

/// Where everything is kept unless somebody says otherwise.
pub(crate) const DATA_DIR: &str = ".hothouse";
/// Where the API listens unless somebody says otherwise.
pub(crate) const LISTEN: &str = "127.0.0.1:8080";
/// How long running jobs have to finish.
pub(crate) const DRAIN: Duration = Duration::from_secs(35);
/// How long what was dropped has to end.
const GRACE: Duration = Duration::from_secs(10);

/// Options of `hothouse up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for databases, keys and logs
    #[arg(long, env = "HOTHOUSE_DATA_DIR", value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,

    /// Address of the API
    #[arg(long, env = "HOTHOUSE_LISTEN", value_name = "IP:PORT", default_value = LISTEN)]
    listen: SocketAddr,

    /// Admin key to use instead of a new one; at least 16 characters
    #[arg(long, env = "HOTHOUSE_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    admin_key: Option<SecretString>,

    /// What makes the sandboxes
    #[arg(long, env = "HOTHOUSE_DRIVER", value_enum, default_value = "auto")]
    driver: Wanted,

    /// The Docker engine to use where one answers
    #[arg(long, env = "DOCKER_HOST", value_name = "URL", default_value = docker::DEFAULT_HOST)]
    docker_host: String,

    /// The sandboxes' init, when it is not beside this program
    #[arg(long, env = "HOTHOUSE_INIT", value_name = "FILE")]
    init: Option<PathBuf>,

    /// Port of the private Postgres; a free one unless given
    #[arg(long, value_name = "PORT")]
    postgres_port: Option<u16>,

    /// Port of the private Redis; a free one unless given
    #[arg(long, value_name = "PORT")]
    redis_port: Option<u16>,

    /// A file with further settings of the API, the worker and the scheduler
    #[arg(long, env = "HOTHOUSE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Do not run the sample job
    #[arg(long)]
    no_sample: bool,
}

/// Runs the command. The answer is the exit code of the process: 0 after a stop that was asked for, else 1.
pub(crate) async fn run(args: Args, _globals: &Globals) -> anyhow::Result<ExitCode> {
    let folder = DataFolder::create(&args.data_dir)?;
    let _lock = match folder.lock()? {
        Locking::Held(lock) => lock,
        Locking::Busy(pid) => bail!("{}", already_running(&folder, pid)),
    };
    ports::check(args.listen)?;
    let lifecycle = Lifecycle::new();
    stop_on_signals(&lifecycle)?;

    let served = serve(&args, &folder, &lifecycle).await;
    // Whatever the reason, nothing of this `up` stays behind: a start that was cut short may have left a server.
    Stores::stop_left_over(&folder).await;
    folder.clear_running();
    served?;
    if lifecycle.has_failed() {
        bail!("a part of Hothouse failed, so everything was stopped; its message is above");
    }
    say("Hothouse has stopped.");
    Ok(ExitCode::SUCCESS)
}

/// Starts, stays, stops.
async fn serve(args: &Args, folder: &DataFolder, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let wanted = Ports {
        postgres: args.postgres_port,
        redis: args.redis_port,
    };
    let Some(stores) = lifecycle
        .soft()
        .run_until_cancelled(Stores::start(folder, wanted))
        .await
    else {
        return Ok(());
    };
    let stores = stores?;
    let started = lifecycle
        .soft()
        .run_until_cancelled(start(args, folder, &stores, lifecycle))
        .await;
    let started = match started {
        Some(Ok(())) => {
            lifecycle.soft().cancelled().await;
            Ok(())
        }
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    lifecycle.stop();
    let step = Step::begin("stopping");
    step.now("running jobs have up to 20 s to finish; Ctrl-C again drops them");
    if !lifecycle.drained(DRAIN, GRACE).await {
        output::note("something did not end in time; its job is run again at the next start");
    }
    stores.stop().await;
    step.done("everything has ended");
    started
}

/// Everything between running databases and a system that has run its first job.
async fn start(args: &Args, folder: &DataFolder, stores: &Stores, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    lifecycle.spawn_infallible("databases", stores.clone().watch(lifecycle.soft().clone()));
    let sandboxes = Sandboxes::prepare(args.driver, &args.docker_host, args.init.clone(), folder).await?;
    let admin_key = folder.admin_key(args.admin_key.as_ref().map(SecretString::expose_secret))?;
    let settings = Settings {
        listen: args.listen,
        postgres_url: stores.postgres_url.clone(),
        redis_url: stores.redis_url.clone(),
        admin_key: admin_key.clone(),
        sandboxes,
        objects: folder.join("objects"),
        file: args.config.clone(),
    };
    let step = Step::begin("hothouse");
    let providers = embedded::start(&settings, lifecycle).await?;
    let client = sample::client(args.listen, &admin_key)?;
    sample::wait_until_ready(&client).await?;
    step.done(&format!("API, worker and scheduler at http://{}", args.listen));
    folder.write_running(&Running {
        pid: i32::try_from(std::process::id()).context("a pid beyond its type")?,
        address: args.listen,
        started_at: Clock::system().now(),
    })?;
    if !args.no_sample {
        sample::run(&client).await?;
    }
    say(&welcome(args, folder, &providers));
    Ok(())
}

/// The address, the key, and what to do next.
fn welcome(args: &Args, folder: &DataFolder, providers: &[String]) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = |path: PathBuf| {
        let relative = path.strip_prefix(&here).map_or_else(|_| path.clone(), PathBuf::from);
        relative.display().to_string()
    };
    let program = std::env::current_exe().map_or_else(|_| "hothouse".to_owned(), shown);
    let (listen, key) = (args.listen, shown(folder.admin_key_file()));
    // The clients find what is in its usual place by themselves.
    let server = if listen.to_string() == LISTEN {
        String::new()
    } else {
        format!(" --server http://{listen}")
    };
    let (with_key, down) = if args.data_dir == Path::new(DATA_DIR) {
        (String::new(), String::new())
    } else {
        (
            format!(" --key \"$(cat {key})\""),
            format!(" --data-dir {}", args.data_dir.display()),
        )
    };
    let call = server + &with_key;
    let models = models(providers);
    format!(
        "\nHothouse runs at http://{listen}; its admin key is in {key}\n{models}\n\n\
         Try, in another terminal in this folder:\n  \
         {program} run{call} -c 'print(\"hello\")'\n  \
         {program} jobs{call}\n  \
         curl -H \"Authorization: Bearer $(cat {key})\" http://{listen}/api/v1/jobs\n\n\
         Ctrl-C here, or `{program} down{down}`, stops everything."
    )
}

/// Who answers as a model.
fn models(providers: &[String]) -> String {
    let real: Vec<&str> = providers
        .iter()
        .map(String::as_str)
        .filter(|name| *name != "scripted")
        .collect();
    if real.is_empty() {
        return "No model is set up, so agents are played by `scripted` models, which follow rules and say so. Set \
                ANTHROPIC_API_KEY, OPENAI_API_KEY or a base URL for a real one (docs/models.md)."
            .to_owned();
    }
    format!("Models of: {}", real.join(", "))
}

/// The sentence for a second `up` in the same folder.
fn already_running(folder: &DataFolder, pid: Option<i32>) -> String {
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let address = folder
        .running()
        .map(|running| format!(" at http://{}", running.address))
        .unwrap_or_default();
    format!(
        "Hothouse runs already in {}{pid}{address}: stop it with `hothouse down`, or use another folder and address with \
         --data-dir and --listen",
        folder.path().display()
    )
}

/// SIGINT and SIGTERM as everywhere; and a terminal that is closed is a stop too.
fn stop_on_signals(lifecycle: &Lifecycle) -> anyhow::Result<()> {
    lifecycle.stop_on_signals()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let stopping = lifecycle.clone();
    lifecycle.spawn_infallible("hangup", async move {
        if stopping
            .soft()
            .clone()
            .run_until_cancelled(hangup.recv())
            .await
            .is_some()
        {
            stopping.stop();
        }
    });
    Ok(())
}
