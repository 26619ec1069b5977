//! Whether a job costs more the longer the backlog is: a short and a long one, drained for the same time.

use std::time::Duration;

use anyhow::ensure;
use chrono::{DateTime, TimeDelta, Utc};

use super::backlog::Load;
use super::stores;
use crate::client::Client;
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::report::Report;

/// Time in which draining gets up to its rate.
const RISE: TimeDelta = TimeDelta::seconds(1);

/// Options of `hothouse bench queue growth`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Jobs of the long backlog
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    long: u64,
    /// Jobs of the short one: more than are drained in the measured time
    #[arg(long, value_name = "N", default_value_t = 80_000)]
    short: u64,
    /// Measured time of each
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    seconds: u64,
}

/// Measures.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    ensure!(
        args.long > args.short && args.seconds > 0,
        "--long must be more than --short"
    );
    let store = stores::postgres()?;
    let mut rates = [0.0; 2];
    for (rate, jobs) in rates.iter_mut().zip([args.short, args.long - args.short]) {
        queue.pause().await?;
        let load = Load {
            queue: &queue.name,
            connections: 2,
            jobs,
            limit: Duration::from_mins(30),
        };
        load.run(client).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        queue.resume().await?;
        #[expect(clippy::disallowed_methods, reason = "the rows carry the time of this machine")]
        let from: DateTime<Utc> = Utc::now() + RISE;
        let until = from + Duration::from_secs(args.seconds);
        tokio::time::sleep((until - from + RISE).to_std()?).await;
        queue.pause().await?;
        let ended = store.ended_between(&queue.name, from, until).await?;
        *rate = f64::from(u32::try_from(ended)?) / f64::from(u32::try_from(args.seconds)?);
    }
    let [short, long] = rates;
    report.number("short backlog", short, "jobs/s");
    report.number("long backlog", long, "jobs/s");
    report.number("long to short", long / short * 100.0, "%");
    Ok(())
}
