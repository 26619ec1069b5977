//! `hothouse-worker`: the worker as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use common::clock::Clock;
use common::config;
use common::lifecycle::Lifecycle;
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
    worker::run(config, Clock::system(), lifecycle.clone()).await?;
    lifecycle.stop();
    let ended = lifecycle.drained(GRACE, GRACE).await;
    Ok(if ended && !lifecycle.has_failed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
