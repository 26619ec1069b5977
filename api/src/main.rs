//! `hothouse-api`: the HTTP API as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use api::Config;
use clap::Parser;
use common::clock::Clock;
use common::lifecycle::Lifecycle;

/// The HTTP API of Hothouse.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// A file of settings; `HOTHOUSE_SECTION__KEY` variables override it.
    #[arg(long, env = "HOTHOUSE_CONFIG")]
    config: Option<PathBuf>,
    /// Print the merged settings, without secrets, and stop.
    #[arg(long)]
    check: bool,
}

/// Time for tasks to end after a hard stop.
const GRACE: Duration = Duration::from_secs(5);

/// Requests and jobs are many small, short-lived allocations on every thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    // The allocator asks for huge pages, in which the 8 MB that an idle API needs take 24. Elsewhere it may have them: the
    // wish would be handed down to sandboxes. A kernel that refuses need not be asked.
    nix::sys::prctl::set_thp_disable(true).unwrap_or_default();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let config: Config = common::config::load(arguments.config.as_deref(), common::config::environment())?;
    if arguments.check {
        #[expect(clippy::print_stdout, reason = "this is what the option is for")]
        {
            println!("{}", serde_json::to_string_pretty(&config)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    common::telemetry::install(&config.telemetry)?;
    let lifecycle = Lifecycle::new();
    lifecycle.stop_on_signals()?;
    let drain = config.http.drain;
    lifecycle.spawn("api", api::run(config, Clock::system(), lifecycle.clone()));
    let is_whole = lifecycle.drained(drain, GRACE).await;
    Ok(if is_whole && !lifecycle.has_failed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
