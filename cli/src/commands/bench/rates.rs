//! How many programs a second sandboxes run, beside what the machine and its engine do bare: part of
//! `hothouse bench sandbox`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::engine::Engine;
use super::queue::BenchQueue;
use super::report::Report;
use crate::client::Client;

/// How long the machine is measured bare, and the engine at each number of starts at once.
const BARE: Duration = Duration::from_secs(5);

/// Starts at once that are tried.
const AT_ONCE: [usize; 4] = [1, 2, 3, 4];

/// The interpreter, in the image and outside: a wrapper before it on the path would be another program.
const PYTHON: &str = "/usr/bin/python3";

/// Most jobs of one call.
const BATCH: u64 = 1_000;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Jobs of each rate.
    pub(super) jobs: u64,
    /// An environment whose sandboxes are reused by their user.
    pub(super) reuse: Option<&'a str>,
    /// What the engine starts.
    pub(super) image: &'a str,
}

/// Measures jobs that have a sandbox each beside the bare engine, and jobs that share one beside the bare machine.
pub(super) async fn run(
    asked: Asked<'_>,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let single = json!({"command": ["true"]});
    let rate = jobs(client, &format!("{}-single", queue.name), (asked.jobs, single)).await?;
    report.number("single use", rate, "jobs/s, a sandbox each");
    match engine(asked.image).await {
        Ok((bare, at_once)) => {
            report.number(
                "engine, bare",
                bare,
                &format!("sandboxes/s made and destroyed, {at_once} at once"),
            );
            report.number("single use, of it", 100.0 * rate / bare, "% of the bare engine");
        }
        Err(error) => report.remark("engine, bare", format!("not measured: {error:#}")),
    }
    let Some(environment) = asked.reuse else {
        return Ok(());
    };
    let reused = json!({"command": [PYTHON, "-c", "print(1)"], "environment": environment});
    let rate = jobs(client, &format!("{}-reuse", queue.name), (asked.jobs, reused)).await?;
    report.number("reuse", rate, "python3 jobs/s of one user");
    let bare = processes().await?;
    report.number("machine, bare", bare, "python3 processes/s on all processors");
    report.number("reuse, of it", 100.0 * rate / bare, "% of the bare machine");
    Ok(())
}

/// Jobs a second, from the first start to the last end, as their rows say.
async fn jobs(client: &Client, queue: &str, (count, input): (u64, Value)) -> anyhow::Result<f64> {
    let queue = BenchQueue::named(client, queue.to_owned());
    queue.pause().await?;
    let job = json!({"kind": "exec", "queue": queue.name, "user_id": "bench", "input": input});
    let mut left = count;
    while left > 0 {
        let some = left.min(BATCH);
        let jobs: Vec<&Value> = (0..some).map(|_| &job).collect();
        client
            .submit::<Value>(&["jobs", "batch"], &json!({"jobs": jobs}))
            .await?;
        left -= some;
    }
    // What is loaded is also dispatched then, and the pool is full.
    tokio::time::sleep(Duration::from_secs(5)).await;
    queue.resume().await?;
    queue.drain().await?;
    let census = queue.census(usize::try_from(count)?).await?;
    let good = census.ends.get(&("succeeded".to_owned(), 1)).copied().unwrap_or(0);
    ensure!(
        u64::try_from(good)? == count,
        "not every job did well: {}",
        census.told()
    );
    let (first, last) = (census.started_at.iter().min(), census.finished_at.iter().max());
    let (first, last) = first.zip(last).context("no job was started")?;
    Ok(per_second(count, (*last - *first).to_std()?))
}

/// What the engine makes and destroys a second at its best, and with how many at once.
async fn engine(image: &str) -> anyhow::Result<(f64, usize)> {
    let engine = Engine::open(image).await?;
    let mut best = (0.0, 0);
    for at_once in AT_ONCE {
        let (mut tasks, begun) = (JoinSet::new(), Instant::now());
        for _ in 0..at_once {
            tasks.spawn(churn(engine.clone(), begun + BARE));
        }
        let mut made = 0;
        while let Some(ended) = tasks.join_next().await {
            made += ended??;
        }
        let rate = per_second(made, begun.elapsed());
        if rate > best.0 {
            best = (rate, at_once);
        }
    }
    Ok(best)
}

/// Makes and destroys sandboxes one after the other; answers how many.
async fn churn(engine: Engine, until: Instant) -> anyhow::Result<u64> {
    let mut made = 0;
    while Instant::now() < until {
        let (id, pipe) = engine.start().await?;
        drop(pipe);
        engine.destroy(id).await?;
        made += 1;
    }
    Ok(made)
}

/// `python3` processes a second, as many at once as there are processors.
async fn processes() -> anyhow::Result<f64> {
    let (mut tasks, begun) = (JoinSet::new(), Instant::now());
    for _ in 0..std::thread::available_parallelism()?.get() {
        tasks.spawn(async move {
            let mut ended = 0;
            while begun.elapsed() < BARE {
                let mut python = Command::new(PYTHON);
                python
                    .args(["-c", "print(1)"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null());
                ensure!(python.status().await?.success(), "python3 does not do well");
                ended += 1;
            }
            Ok(ended)
        });
    }
    let mut ended = 0;
    while let Some(count) = tasks.join_next().await {
        ended += count??;
    }
    Ok(per_second(ended, begun.elapsed()))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
