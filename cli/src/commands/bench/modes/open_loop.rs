//! Pick-up: from the call to the start on a worker. One job at a time on an idle system, each beside a single commit,
//! and then calls at fixed times.

use std::time::Duration;

use anyhow::ensure;

use super::stores;
use crate::client::Client;
use crate::commands::bench::latency::Samples;
use crate::commands::bench::load::{Load, Pace};
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::report::Report;
use crate::commands::bench::wire;

/// Options of `hothouse bench queue pickup`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Jobs of the idle part, one after the other; somewhat fewer, for it lasts as many pauses
    #[arg(long, value_name = "N", default_value_t = 300)]
    jobs: u32,
    /// Idle time between two of them, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pause: u64,
    /// Calls a second of the other part
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Time of the other part
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u64,
}

/// Measures.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    ensure!(client.is_here(), "the server is another machine, with another clock");
    // A commit by itself costs the same pace of calls, for a machine that sleeps between them is slower.
    let mut commits = Samples::default();
    if let Ok(store) = stores::postgres() {
        for _ in 0..args.jobs {
            tokio::time::sleep(Duration::from_millis(args.pause)).await;
            commits.add(store.time_of_a_commit().await?);
        }
    }
    report.latencies("one commit", commits);
    let pause = Duration::from_millis(args.pause);
    let idle = (1, Pace::Rested(pause), pause * args.jobs);
    starts(client, queue, report, "call → start, idle", idle).await?;
    let loaded = (64, Pace::Rate(args.rate), Duration::from_secs(args.seconds));
    starts(client, queue, report, "call → start, rate", loaded).await
}

/// Calls over so many connections; from a call to its job's start.
async fn starts(
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
    name: &'static str,
    (connections, pace, measured): (usize, Pace, Duration),
) -> anyhow::Result<()> {
    let body = serde_json::json!({"kind": "noop", "queue": queue.name}).to_string();
    let load = Load {
        address: client.address()?,
        request: wire::request("POST", "/api/v1/jobs", &client.raw_headers(), body.as_bytes()),
        connections,
        pace,
        warm_up: Duration::from_millis(500),
        measured,
        keeps_calls: true,
    };
    let tally = load.run().await;
    queue.drain().await?;
    let starts = queue.starts().await?;
    let mut samples = Samples::default();
    for (id, due_at) in &tally.calls {
        if let Some(started_at) = starts.get(id) {
            samples.add((*started_at - *due_at).to_std().unwrap_or_default());
        }
    }
    report.check(
        "all started",
        samples.len() == tally.calls.len() && tally.refused.is_empty(),
        format!("{} of {} calls", samples.len(), tally.calls.len()),
    );
    report.latencies(name, samples);
    Ok(())
}
