//! What a run leaves behind in the tables: dead rows and bytes, and what 50 million jobs would leave.

use std::time::Duration;

use super::backlog::Load;
use super::stores;
use crate::client::Client;
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::report::Report;

/// Jobs that are extrapolated to.
const MANY: f64 = 50e6;

/// Options of `hothouse bench queue churn`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Jobs that go through the whole path, in whole thousands
    #[arg(long, value_name = "N", default_value_t = 300_000)]
    jobs: u64,
}

/// Measures.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let store = stores::postgres()?;
    let before = store.statistics().await?;
    let load = Load {
        queue: &queue.name,
        connections: 2,
        jobs: args.jobs,
        limit: Duration::from_mins(30),
    };
    let loaded = load.run(client).await?;
    queue.drain().await?;
    // The statistics are written by each connection once a second at most.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = store.statistics().await?;
    let jobs = loaded.jobs as f64;
    let bytes = after.bytes.saturating_sub(before.bytes) as f64;
    report.number("dead rows", after.dead_rows as f64, "rows after the run");
    report.number(
        "dead a job",
        after.dead_rows.saturating_sub(before.dead_rows) as f64 / jobs,
        "rows",
    );
    report.number("bytes a job", bytes / jobs, "bytes");
    report.number(
        "of them indexes",
        after.index_bytes.saturating_sub(before.index_bytes) as f64 / jobs,
        "bytes a job",
    );
    report.number("50 million jobs", bytes / jobs * MANY / 1e9, "GB");
    Ok(())
}
