//! A backlog, loaded first and drained then: from the first start until the last end, as the rows say.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;

use super::backlog::Load;
use crate::client::Client;
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::report::Report;

/// Options of `hothouse bench queue drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Jobs of the backlog, in whole thousands
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(super) jobs: u64,
}

/// Measures, and checks that every accepted job ended once.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    queue.pause().await?;
    let load = Load {
        queue: &queue.name,
        connections: 4,
        jobs: args.jobs,
        limit: Duration::from_mins(10),
    };
    let loaded = load.run(client).await?;
    // What is loaded is also dispatched then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    queue.resume().await?;
    queue.drain().await?;
    let census = queue.census(usize::try_from(loaded.jobs)?).await?;
    let (first, last) = (census.started_at.iter().min(), census.finished_at.iter().max());
    let (first, last) = first.zip(last).context("no job was started")?;
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let rate = loaded.jobs as f64 / (*last - *first).as_seconds_f64();
    report.number("drained", rate, "jobs/s");
    let unique: HashSet<_> = census.ids.iter().collect();
    let is_whole = unique.len() == census.ids.len() && u64::try_from(unique.len())? == loaded.jobs;
    report.check("each ended once", is_whole, census.told());
    Ok(())
}
