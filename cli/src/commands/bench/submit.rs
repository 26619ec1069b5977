//! `hothouse bench submit`: single submissions into a paused queue.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use uuid::Uuid;

use super::load::{Load, Pace};
use super::queue::BenchQueue;
use super::report::Report;
use super::wire;
use crate::client::Client;

/// Options of `hothouse bench submit`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Connections, each with one call in flight
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Submissions a second, at fixed times; without it, as many as are answered
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Measured time
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u64,
    /// Time before it, in which everything gets warm
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    warm_up: u64,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            connections: 64,
            rate: None,
            seconds: 8,
            warm_up: 2,
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
    ensure!(
        args.seconds > 0 && args.connections > 0,
        "--seconds and --connections must be at least 1"
    );
    queue.pause().await?;
    let body = serde_json::json!({"kind": "noop", "queue": queue.name});
    let load = Load {
        address: client.address()?,
        request: wire::request(
            "POST",
            "/api/v1/jobs",
            &client.raw_headers(),
            body.to_string().as_bytes(),
        ),
        connections: args.connections,
        pace: args.rate.map_or(Pace::Answered, Pace::Rate),
        warm_up: Duration::from_secs(args.warm_up),
        measured: Duration::from_secs(args.seconds),
        keeps_calls: false,
    };
    let tally = load.run().await;
    let answered = tally.accepted.len();
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    report.number("accepted", answered as f64 / load.measured.as_secs_f64(), "jobs/s");
    report.latencies("latency", tally.accepted);
    let refused: u64 = tally.refused.values().sum();
    report.check(
        "all accepted",
        refused == 0,
        format!("refused by status (0: broken connection): {:?}", tally.refused),
    );
    let accepted = usize::try_from(tally.accepted_ever).unwrap_or(usize::MAX);
    let census = queue.census(accepted).await?;
    let unique: HashSet<Uuid> = census.ids.iter().copied().collect();
    let told = format!("{accepted} accepted; in the queue: {}", census.told());
    report.check(
        "all there",
        unique.len() == accepted && census.ids.len() == accepted,
        told,
    );
    Ok(())
}
