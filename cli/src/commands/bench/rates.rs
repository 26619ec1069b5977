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

/// Rounds in which both sides are measured by turns: the machine changes by more than they differ.
const ROUNDS: u64 = 3;

/// How long the machine is measured bare in a round.
const BARE: Duration = Duration::from_secs(5);

/// How long the engine is measured at each number of starts at once, to find its best.
const TRIAL: Duration = Duration::from_secs(3);

/// Starts at once that are tried.
const AT_ONCE: [usize; 4] = [1, 2, 3, 4];

/// The interpreter, in the image and outside: a wrapper before it on the path would be another program.
const PYTHON: &str = "/usr/bin/python3";

/// Most jobs of one call.
const BATCH: u64 = 1_000;

/// The first of the ends of a round that are not counted: their sandboxes were there before it, and what follows is steady.
const SETTLING: usize = 20;

/// How many times more jobs are run where sandboxes are reused, so that a round takes some seconds too.
const REUSED: u64 = 4;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Jobs of a round that have a sandbox each.
    pub(super) jobs: u64,
    /// An environment whose sandboxes are reused by their user.
    pub(super) reuse: Option<&'a str>,
    /// What the engine starts.
    pub(super) image: &'a str,
}

/// So many in so much time.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    count: u64,
    time: Duration,
}

/// Both sides, by rounds.
#[derive(Debug, Default)]
struct Sides {
    ours: Vec<Rate>,
    bare: Vec<Rate>,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn per_second(self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }

    /// What all of these have counted when the last of them ends.
    async fn of(mut counts: JoinSet<anyhow::Result<u64>>, begun: Instant) -> anyhow::Result<Self> {
        let mut count = 0;
        while let Some(ended) = counts.join_next().await {
            count += ended??;
        }
        Ok(Self {
            count,
            time: begun.elapsed(),
        })
    }

    fn sum(rates: &[Self]) -> Self {
        rates.iter().fold(Self::default(), |sum, rate| Self {
            count: sum.count + rate.count,
            time: sum.time + rate.time,
        })
    }
}

impl Sides {
    /// Ours in percent of the bare one, and the same of each round.
    fn tell(&self, name: &'static str, of: &str, report: &mut Report) {
        let percent = |ours: Rate, bare: Rate| 100.0 * ours.per_second() / bare.per_second();
        let rounds = self.ours.iter().zip(&self.bare);
        let rounds: Vec<String> = rounds
            .map(|(ours, bare)| format!("{:.0}", percent(*ours, *bare)))
            .collect();
        let unit = format!("% of the bare {of}, by rounds {}", rounds.join(", "));
        report.number(name, percent(Rate::sum(&self.ours), Rate::sum(&self.bare)), &unit);
    }
}

/// Measures jobs that have a sandbox each beside the bare engine, and jobs that share one beside the bare machine.
pub(super) async fn run(
    asked: Asked<'_>,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    single(asked, client, queue, report).await?;
    if let Some(environment) = asked.reuse {
        reused(asked.jobs * REUSED, environment, (client, queue), report).await?;
    }
    Ok(())
}

async fn single(asked: Asked<'_>, client: &Client, queue: &BenchQueue<'_>, report: &mut Report) -> anyhow::Result<()> {
    let mut sides = Sides::default();
    let best = best(asked.image).await;
    for round in 0..ROUNDS {
        let job = json!({"command": ["true"]});
        let name = format!("{}-single-{round}", queue.name);
        let rate = jobs(client, &name, (asked.jobs, job)).await?;
        sides.ours.push(rate);
        if let Ok((engine, at_once)) = &best {
            settled().await;
            sides.bare.push(churned(engine, *at_once, rate.time).await?);
        }
    }
    report.number(
        "single use",
        Rate::sum(&sides.ours).per_second(),
        "jobs/s, a sandbox each",
    );
    match best {
        Ok((_, at_once)) => {
            let unit = format!("sandboxes/s made and destroyed, {at_once} at once");
            report.number("engine, bare", Rate::sum(&sides.bare).per_second(), &unit);
            sides.tell("single use, of it", "engine", report);
        }
        Err(error) => report.remark("engine, bare", format!("not measured: {error:#}")),
    }
    Ok(())
}

async fn reused(
    count: u64,
    environment: &str,
    (client, queue): (&Client, &BenchQueue<'_>),
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut sides = Sides::default();
    for round in 0..ROUNDS {
        let job = json!({"command": [PYTHON, "-c", "print(1)"], "environment": environment});
        let name = format!("{}-reuse-{round}", queue.name);
        sides.ours.push(jobs(client, &name, (count, job)).await?);
        settled().await;
        sides.bare.push(processes().await?);
    }
    let (ours, bare) = (Rate::sum(&sides.ours), Rate::sum(&sides.bare));
    report.number("reuse", ours.per_second(), "python3 jobs/s of one user");
    report.number(
        "machine, bare",
        bare.per_second(),
        "python3 processes/s on all processors",
    );
    sides.tell("reuse, of it", "machine", report);
    Ok(())
}

/// What is loaded is also dispatched then, what has ended is cleared away, and the pool is full.
async fn settled() {
    tokio::time::sleep(Duration::from_secs(4)).await;
}

/// Jobs from the first ends, which are not counted, to the last, as their rows say.
async fn jobs(client: &Client, queue: &str, (count, input): (u64, Value)) -> anyhow::Result<Rate> {
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
    settled().await;
    queue.resume().await?;
    queue.drain().await?;
    let mut census = queue.census(usize::try_from(count)?).await?;
    let good = census.ends.get(&("succeeded".to_owned(), 1)).copied().unwrap_or(0);
    ensure!(
        u64::try_from(good)? == count,
        "not every job did well: {}",
        census.told()
    );
    census.finished_at.sort_unstable();
    let counted = census.finished_at.get(SETTLING..).unwrap_or_default();
    let (first, last) = counted.first().zip(counted.last()).context("too few jobs")?;
    Ok(Rate {
        count: u64::try_from(counted.len())? - 1,
        time: (*last - *first).to_std()?,
    })
}

/// The engine, and with how many starts at once it makes and destroys most sandboxes.
async fn best(image: &str) -> anyhow::Result<(Engine, usize)> {
    let engine = Engine::open(image).await?;
    let mut best = (0.0, 0);
    for at_once in AT_ONCE {
        let rate = churned(&engine, at_once, TRIAL).await?.per_second();
        if rate > best.0 {
            best = (rate, at_once);
        }
    }
    Ok((engine, best.1))
}

/// What the engine makes and destroys, so many at once and for so long.
async fn churned(engine: &Engine, at_once: usize, time: Duration) -> anyhow::Result<Rate> {
    let (mut tasks, begun) = (JoinSet::new(), Instant::now());
    for _ in 0..at_once {
        tasks.spawn(churn(engine.clone(), begun + time));
    }
    Rate::of(tasks, begun).await
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

/// `python3` processes, as many at once as there are processors.
async fn processes() -> anyhow::Result<Rate> {
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
    Rate::of(tasks, begun).await
}
