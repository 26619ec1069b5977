//! `hothouse-scheduler`: the scheduler as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::clock::Clock;
use common::health::{Health, listener};
use common::lifecycle::Lifecycle;
use common::{config, metrics, telemetry};
use scheduler::Config;
use tokio_util::sync::CancellationToken;

/// Fires schedules and runs the periodic duties of Hothouse; one of those that run leads.
#[derive(Debug, Parser)]
#[command(name = "hothouse-scheduler", version)]
struct Args {
    /// A TOML file with settings that differ from the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Requests and jobs are many small, short-lived allocations on every thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let config: Config = config::load(args.config.as_deref(), config::environment())?;
    telemetry::install(&config.telemetry)?;
    let lifecycle = Lifecycle::new();
    lifecycle.stop_on_signals()?;
    let drain = config.scheduler.drain;
    let health = Health::new(config.health.stall_max);
    let asked = CancellationToken::new();
    if let Some(address) = config::address(&config.scheduler.health_address, "scheduler.health_address")? {
        let answering = listener::run(address, health.clone(), metrics::install(), asked.clone());
        lifecycle.spawn_infallible("health", answering);
    }
    let scheduler = scheduler::run(config, Clock::system(), lifecycle.clone(), health);
    let stopping = lifecycle.clone();
    lifecycle.spawn("scheduler", async move {
        let ended = scheduler.await;
        asked.cancel();
        stopping.stop();
        ended.map_err(|error| format!("{error:#}"))
    });
    let clean = lifecycle.drained(drain, Duration::from_secs(1)).await;
    Ok(if clean && !lifecycle.has_failed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
