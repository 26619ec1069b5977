//! `hothouse bench pickup`: one job at a time on an idle system.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use serde_json::json;

use super::latency::Samples;
use super::queue::BenchQueue;
use super::report::Report;
use crate::client::{Client, Follower, Job};
use crate::output;

/// Options of `hothouse bench pickup`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Jobs, one after the other
    #[arg(long, value_name = "N", default_value_t = 300)]
    jobs: u64,
    /// Idle time between two of them, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20)]
    pause: u64,
}

/// The latencies of a job's way to a worker.
#[derive(Debug, Default)]
struct Taken {
    /// From the call's begin, by this machine's clock, to the row's `started_at`.
    call_to_start: Samples,
    /// From the row's `created_at` to its `started_at`.
    row_to_start: Samples,
    /// From the call's begin until the `started` event is here.
    call_to_event: Samples,
}

/// Measures.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut taken = Taken::default();
    let bar = output::bar(args.jobs, "measuring");
    // The first few open connections and fill caches.
    for warm_up in 0..5.min(args.jobs) {
        one(client, queue, &mut Taken::default())
            .await
            .with_context(|| format!("warm-up {warm_up}"))?;
    }
    for _ in 0..args.jobs {
        tokio::time::sleep(Duration::from_millis(args.pause)).await;
        one(client, queue, &mut taken).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    if client.is_here() {
        report.latencies("call → started_at", taken.call_to_start);
    } else {
        report.remark(
            "call → started_at",
            "not measured: the server is another machine, with another clock",
        );
    }
    report.latencies("created → started", taken.row_to_start);
    report.latencies("call → event", taken.call_to_event);
    Ok(())
}

async fn one(client: &Client, queue: &BenchQueue<'_>, taken: &mut Taken) -> anyhow::Result<()> {
    let (called, called_at) = (Instant::now(), SystemTime::now());
    let job: Job = client
        .submit(&["jobs"], &json!({"kind": "noop", "queue": queue.name}))
        .await?;
    let mut follower = Follower::new(client, job.id, None);
    while let Some(event) = follower.next().await? {
        if event.kind == "started" {
            taken.call_to_event.add(called.elapsed());
        }
    }
    let job: Job = client.get(&["jobs", &job.id.to_string()], &[]).await?;
    let started_at = job
        .started_at
        .with_context(|| format!("job {} ended as {} without a start", job.id, job.state))?;
    taken.call_to_start.add(between(called_at.into(), started_at));
    taken.row_to_start.add(between(job.created_at, started_at));
    Ok(())
}

/// Never negative: the clocks of two processes of one machine are read in order, but rounded.
fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}
