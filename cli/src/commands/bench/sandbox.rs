//! `hothouse bench sandbox`: one program at a time in a warm sandbox, beside `docker run` of the same image.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::latency::Samples;
use super::queue::BenchQueue;
use super::report::Report;
use super::{alone, rates, workspace};
use crate::client::{Client, Event, Follower, Job};
use crate::output;

const PROGRAM: &str = "print(1)";

/// Options of `hothouse bench sandbox`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Programs, one after the other
    #[arg(long, value_name = "N", default_value_t = 50)]
    jobs: u64,
    /// Idle time between two of them, in milliseconds, in which the pool fills up again
    #[arg(long, value_name = "MS", default_value_t = 500)]
    pause: u64,
    /// Image for `docker run`, the one that the sandboxes are made of
    #[arg(long, default_value = "hothouse/default:current")]
    image: String,
    /// Times that `docker run` is measured; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 20)]
    docker_runs: u64,
    /// Size of the workspace that is saved and restored, in MiB, besides one of 1 MiB; 0 leaves both out
    #[arg(long, value_name = "MIB", default_value_t = 50)]
    workspace: u64,
    /// Times that each workspace is saved and restored
    #[arg(long, value_name = "N", default_value_t = 5)]
    workspaces: u64,
    /// Programs of a round in which it is measured how many run in a second, by turns with the bare engine; more than 20, and
    /// 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u64,
    /// An environment with `reuse = "user"`, to measure the same in sandboxes that are reused, beside the bare machine
    #[arg(long, value_name = "NAME", requires = "rate")]
    reuse: Option<String>,
    /// Times that files are unpacked and programs are run in one sandbox without the queue; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 0)]
    alone: u64,
    /// Sandboxes that do nothing, to see what one weighs
    #[arg(long, value_name = "N", default_value_t = 0, requires = "alone")]
    idle: u64,
}

#[derive(Debug, Default)]
struct Taken {
    claim_to_process: Samples,
    call_to_byte: Samples,
    call_to_end: Samples,
}

/// Measures both.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let bar = output::bar(args.jobs + args.docker_runs, "measuring");
    let mut taken = Taken::default();
    for _ in 0..3.min(args.jobs) {
        one(client, queue, &mut Taken::default()).await?;
    }
    for _ in 0..args.jobs {
        tokio::time::sleep(Duration::from_millis(args.pause)).await;
        one(client, queue, &mut taken).await?;
        bar.inc(1);
    }
    let mut docker = Samples::default();
    let mut without_docker = None;
    for _ in 0..args.docker_runs {
        match docker_run(&args.image).await {
            Ok(latency) => docker.add(latency),
            Err(error) => {
                without_docker = Some(error);
                break;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.workspace > 0 {
        for mib in [1, args.workspace] {
            workspace::run(client, (mib, args.workspaces), report).await?;
        }
    }

    if args.alone > 0 {
        let asked = alone::Asked {
            times: args.alone,
            idle: args.idle,
            image: &args.image,
        };
        alone::run(asked, report).await?;
    }
    if args.rate > 0 {
        let asked = rates::Asked {
            jobs: args.rate,
            reuse: args.reuse.as_deref(),
            image: &args.image,
        };
        rates::run(asked, client, queue, report).await?;
    }

    let drivers = drivers(client).await?;
    let ours = taken.call_to_byte.clone().summary();
    let theirs = docker.clone().summary();
    report.remark("driver", drivers.join(", "));
    report.latencies("claim → process", taken.claim_to_process);
    report.latencies("call → first byte", taken.call_to_byte);
    report.latencies("call → end", taken.call_to_end);
    match without_docker {
        Some(error) => report.remark("docker run", format!("not measured: {error:#}")),
        None => report.latencies("docker run", docker),
    }
    if drivers != ["docker"] {
        report.remark(
            "ratio",
            "not told: the sandboxes are not all of the docker driver, so the image is another",
        );
    } else if let (Some(ours), Some(theirs)) = (ours, theirs) {
        report.number(
            "ratio",
            theirs.p50_ms / ours.p50_ms,
            "times faster to the first byte, at p50",
        );
    }
    Ok(())
}

/// The drivers of the workers that are there, each once.
async fn drivers(client: &Client) -> anyhow::Result<Vec<String>> {
    let workers = client.whole_list(&["workers"]).await?;
    let drivers: BTreeSet<String> = workers.iter().map(|worker| output::field(worker, "driver")).collect();
    Ok(drivers.into_iter().collect())
}

/// Runs the program in a sandbox.
async fn one(client: &Client, queue: &BenchQueue<'_>, taken: &mut Taken) -> anyhow::Result<()> {
    let called = Instant::now();
    let input = json!({"language": "python", "code": PROGRAM});
    let job: Job = client
        .submit(&["jobs"], &json!({"kind": "exec", "queue": queue.name, "input": input}))
        .await?;
    let mut follower = Follower::new(client, job.id, None);
    let mut first_byte = None;
    let mut claimed_at = None;
    let mut process_at = None;
    while let Some(event) = follower.next().await? {
        match event.kind.as_str() {
            "started" => claimed_at = at(&event),
            "status" if event.text("phase") == "running" => process_at = at(&event),
            "stdout" if first_byte.is_none() => first_byte = Some(called.elapsed()),
            "failed" | "cancelled" => bail!("the program did not succeed: {}", Value::Object(event.data)),
            _ => {}
        }
    }
    taken.call_to_end.add(called.elapsed());
    taken
        .call_to_byte
        .add(first_byte.context("the program printed nothing")?);
    if let (Some(from), Some(to)) = (claimed_at, process_at) {
        taken.claim_to_process.add((to - from).to_std().unwrap_or_default());
    }
    Ok(())
}

fn at(event: &Event) -> Option<DateTime<Utc>> {
    event.text("at").parse().ok()
}

/// Runs the program by `docker run`: the time to its first byte.
async fn docker_run(image: &str) -> anyhow::Result<Duration> {
    let called = Instant::now();
    let mut child = Command::new("docker")
        .args([
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "python3",
            image,
            "-c",
            PROGRAM,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("docker cannot be started")?;
    let mut stdout = child.stdout.take().context("no output")?;
    let mut byte = [0];
    let count = stdout.read(&mut byte).await?;
    let latency = called.elapsed();
    let ended = child.wait_with_output().await?;
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.success() && count == 1,
        "{}",
        told.lines().next().unwrap_or("it printed nothing")
    );
    Ok(latency)
}
