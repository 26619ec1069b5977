//! `hothouse`: the command line of Hothouse.

mod args;
mod client;
mod commands;
mod exit;
mod globals;
mod interrupt;
mod output;
mod services;
mod watch;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::globals::Globals;

/// Durable jobs for chat turns and agent executions, in warm sealed sandboxes
#[derive(Debug, Parser)]
#[command(name = "hothouse", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine and stay until Ctrl-C
    Up(commands::up::Args),
    /// Drain and stop what `up` started in this folder
    Down(commands::down::Args),
    /// Run a program in a sandbox, as if it ran here
    Run(Box<commands::run::Args>),
    /// List jobs, or look at one
    #[command(alias = "job")]
    Jobs(commands::jobs::Args),
    /// Show what a job printed
    Logs(commands::logs::Args),
    /// Stop jobs
    Cancel(commands::cancel::Args),
    /// Talk to an agent
    Chat(commands::chat::Args),
    /// List, save and run agents
    #[command(alias = "agent")]
    Agents(commands::agents::Args),
    /// List and answer what agents ask before they run a tool
    #[command(alias = "approval")]
    Approvals(commands::approvals::Args),
    /// List and set what models may cost for agents, conversations, users and models
    Budgets(commands::budgets::Args),
    /// List, save, fire and carry schedules
    #[command(alias = "schedule")]
    Schedules(commands::schedules::Args),
    /// List, limit, pause and resume queues
    #[command(alias = "queue")]
    Queues(commands::queues::Args),
    /// List, pause and resume keys of concurrency or rate
    #[command(alias = "paused-key")]
    PausedKeys(commands::paused_keys::Args),
    /// List and build environments: what sandboxes hold
    #[command(alias = "environments")]
    Env(commands::env::Args),
    /// List and drain workers (admin keys only)
    #[command(alias = "worker")]
    Workers(commands::workers::Args),
    /// List, make, limit, pause and resume tenants (admin keys only)
    #[command(alias = "tenant")]
    Tenants(commands::tenants::Args),
    /// List, make and end API keys (admin keys only)
    #[command(alias = "key")]
    Keys(commands::keys::Args),
    /// Serve scripted models over HTTP, for anybody's tests
    Scripted(commands::scripted::Args),
    /// Check the configuration of the servers
    Config(commands::config::Args),
    /// Measure this installation
    Bench(commands::bench::Args),
    /// Try to break out of this machine's sandboxes, in every way that is known
    Verify(commands::verify::Args),
    /// Say what is missing on this machine and how to get it
    Doctor(commands::doctor::Args),
}

/// Requests and jobs are many small, short-lived allocations on every thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match runtime(&cli.command).and_then(|runtime| runtime.block_on(dispatch(cli))) {
        Ok(code) => code,
        Err(error) => {
            if is_broken_pipe(&error) {
                return exit::BROKEN_PIPE.into();
            }
            output::note(format_args!("{error:#}"));
            exit::FAILED.into()
        }
    }
}

/// Has the reader of the output gone, as in `hothouse jobs | head`? That is no news to anybody.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Servers need every core; a client is quicker to start and cheaper beside a server on one thread.
fn runtime(command: &Command) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        Command::Up(_) | Command::Verify(_) => tokio::runtime::Builder::new_multi_thread(),
        Command::Bench(args) if args.serves() => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    Ok(builder.enable_all().build()?)
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let globals = &cli.globals;
    match cli.command {
        Command::Up(args) => commands::up::run(args, globals).await,
        Command::Down(args) => commands::down::run(args, globals).await,
        Command::Run(args) => commands::run::run(*args, globals).await,
        Command::Jobs(args) => commands::jobs::run(args, globals).await,
        Command::Logs(args) => commands::logs::run(args, globals).await,
        Command::Cancel(args) => commands::cancel::run(args, globals).await,
        Command::Chat(args) => commands::chat::run(args, globals).await,
        Command::Agents(args) => commands::agents::run(args, globals).await,
        Command::Approvals(args) => commands::approvals::run(args, globals).await,
        Command::Budgets(args) => commands::budgets::run(args, globals).await,
        Command::Queues(args) => commands::queues::run(args, globals).await,
        Command::PausedKeys(args) => commands::paused_keys::run(args, globals).await,
        Command::Env(args) => commands::env::run(args, globals).await,
        Command::Workers(args) => commands::workers::run(args, globals).await,
        Command::Tenants(args) => commands::tenants::run(args, globals).await,
        Command::Schedules(args) => commands::schedules::run(args, globals).await,
        Command::Keys(args) => commands::keys::run(args, globals).await,
        Command::Scripted(args) => commands::scripted::run(args, globals).await,
        Command::Config(args) => commands::config::run(args, globals).await,
        Command::Bench(args) => commands::bench::run(args, globals).await,
        Command::Verify(args) => commands::verify::run(args, globals).await,
        Command::Doctor(args) => commands::doctor::run(args, globals).await,
    }
}
