//! `hothouse-worker`: the worker as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::clock::Clock;
use common::health::{Health, listener};
use common::lifecycle::Lifecycle;
use common::{config, metrics};
use tokio_util::sync::CancellationToken;
use worker::Config;

/// Claims jobs and runs each one in a warm, sealed sandbox.
#[derive(Debug, Parser)]
#[command(name = "hothouse-worker", version)]
struct Args {
    /// A TOML file of settings; environment variables such as `HOTHOUSE_DATABASE__URL` come on top.
    #[arg(long, env = "HOTHOUSE_CONFIG")]
    config: Option<PathBuf>,
}

/// How long tasks may take to end after the worker itself has stopped.
const GRACE: Duration = Duration::from_secs(5);

/// Requests and jobs are many small, short-lived allocations on every thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let config: Config = config::load(Args::parse().config.as_deref(), config::environment())?;
    common::telemetry::install(&config.telemetry)?;
    let lifecycle = Lifecycle::new();
    lifecycle.stop_on_signals()?;
    let health = Health::new(config.health.stall_max);
    let asked = CancellationToken::new();
    if let Some(address) = config::address(&config.worker.health_address, "worker.health_address")? {
        let answering = listener::run(address, health.clone(), metrics::install(), asked.clone());
        lifecycle.spawn_infallible("health", answering);
    }
    worker::run(config, Clock::system(), lifecycle.clone(), health).await?;
    // Until here: one that drains says so.
    asked.cancel();
    lifecycle.stop();
    let ended = lifecycle.drained(GRACE, GRACE).await;
    Ok(if ended && !lifecycle.has_failed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
