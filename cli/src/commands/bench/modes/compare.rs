//! Ours beside the others, in one run on one machine: the same measurement of each, one after the other, each of a machine that
//! has nothing else to do.

use std::path::Path;

use anyhow::bail;

use super::peers::{self, Figures};
use super::{batch, drain};
use crate::client::Client;
use crate::commands::bench::queue::BenchQueue;
use crate::commands::bench::quiet;
use crate::commands::bench::report::Report;
use crate::commands::bench::submit;

/// A measurement of ours and whom it is compared with: (our figure, peer, its mode, our name for the ratio).
const PAIRS: [(&str, &str, &str, &str); 4] = [
    ("accepted", "bullmq", "http", "submit ÷ BullMQ + Fastify"),
    ("accepted", "pg-boss", "http", "submit ÷ pg-boss + Fastify"),
    (
        "accepted in batches",
        "graphile-worker",
        "bulk",
        "batch ÷ graphile-worker",
    ),
    ("drained", "bullmq", "process", "drain ÷ BullMQ"),
];

/// Measures everybody.
pub(super) async fn run(
    folder: Option<&Path>,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let Some(folder) = folder else {
        bail!("the others' scripts are no part of this repository: name their folder with --peers FOLDER");
    };
    let mut theirs = Figures::new();
    for (peer, modes) in [
        ("bullmq", "http,process"),
        ("pg-boss", "http"),
        ("graphile-worker", "bulk"),
    ] {
        theirs.extend(peers::measure(folder, peer, modes).await?);
    }
    for ((peer, mode, name), value) in &theirs {
        let unit = if name == "rate" { "a second" } else { "ms" };
        report.remark("peer", format!("{peer} {mode} {name}: {value:.1} {unit}"));
    }
    quiet::wait(report).await;
    submit::run(&submit::Args::default(), client, queue, report).await?;
    queue.clean_up().await?;
    quiet::wait(report).await;
    let batches = BenchQueue::new(client, "batch");
    let measured = batch::run(&batch::Args::default(), client, &batches, report).await;
    batches.clean_up().await?;
    measured?;
    quiet::wait(report).await;
    let backlog = BenchQueue::new(client, "drain");
    drain::run(&drain::Args { jobs: 20_000 }, client, &backlog, report).await?;
    for (ours, peer, mode, name) in PAIRS {
        let key = (peer.to_owned(), mode.to_owned(), "rate".to_owned());
        if let (Some(ours), Some(theirs)) = (report.value(ours), theirs.get(&key)) {
            report.number(name, ours / theirs, "times");
        }
    }
    Ok(())
}
