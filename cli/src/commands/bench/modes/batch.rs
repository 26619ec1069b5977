//! Batches into a paused queue: how many jobs are accepted a second.

use std::time::Duration;

use super::backlog::Load;
use crate::client::Client;
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::report::Report;

/// Options of `hothouse bench queue batch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Submitters, each with one batch of 1,000 outstanding
    #[arg(long, value_name = "N", default_value_t = 2)]
    connections: u64,
    /// Measured time
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            connections: 2,
            seconds: 5,
        }
    }
}

/// Measures, and checks that every accepted job is there.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    queue.pause().await?;
    let loaded = Load {
        queue: &queue.name,
        connections: args.connections,
        jobs: u64::MAX / 2,
        limit: Duration::from_secs(args.seconds),
    };
    let loaded = loaded.run(client).await?;
    report.number("accepted in batches", loaded.rate(), "jobs/s");
    let accepted = usize::try_from(loaded.jobs)?;
    let census = queue.census(accepted).await?;
    report.check(
        "all there",
        census.ids.len() == accepted,
        format!("{accepted} accepted; {}", census.told()),
    );
    Ok(())
}
