//! `hothouse bench queue`: the queue by itself, one mode a measurement.

mod backlog;
mod batch;
mod churn;
mod compare;
mod drain;
mod growth;
mod idle;
mod open_loop;
mod peers;
mod stores;

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;

use super::queue::BenchQueue;
use super::report::Report;
use super::{submit, throughput};
use crate::client::Client;

/// Options of `hothouse bench queue`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Measure beside other queues, one after the other, and print the ratios
    #[arg(long)]
    compare: bool,
    /// Folder with the scripts of the others; its README says what they need
    #[arg(long, value_name = "FOLDER", requires = "compare")]
    peers: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Single submissions into a paused queue, closed loop or with --rate
    Submit(submit::Args),
    /// Batches into a paused queue
    Batch(batch::Args),
    /// A backlog of jobs that do nothing, loaded first and then drained
    Drain(drain::Args),
    /// Fed by batches while draining
    Sustained(throughput::Args),
    /// From the call to the start on a worker, one job at a time and at a fixed rate
    Pickup(open_loop::Args),
    /// What an idle system asks of Postgres and Redis, and the memory of its processes
    Idle(idle::Args),
    /// The rate of draining a short backlog and a long one
    Growth(growth::Args),
    /// Dead rows and sizes of the tables over a run
    Churn(churn::Args),
}

/// Measures.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    match &args.mode {
        Some(Mode::Submit(args)) => submit::run(args, client, queue, report).await,
        Some(Mode::Batch(args)) => batch::run(args, client, queue, report).await,
        Some(Mode::Drain(args)) => drain::run(args, client, queue, report).await,
        Some(Mode::Sustained(args)) => throughput::run(args, client, queue, report).await,
        Some(Mode::Pickup(args)) => open_loop::run(args, client, queue, report).await,
        Some(Mode::Idle(args)) => idle::run(args, report).await,
        Some(Mode::Growth(args)) => growth::run(args, client, queue, report).await,
        Some(Mode::Churn(args)) => churn::run(args, client, queue, report).await,
        None if args.compare => compare::run(args.peers.as_deref(), client, queue, report).await,
        None => bail!("name a mode (see --help), or --compare"),
    }
}
