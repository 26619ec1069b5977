//! `hothouse bench turns`: turns of conversations against a provider of this process's own.
//!
//! The provider's pieces carry the moment at which they were sent, so the way of a byte is measured from the provider to
//! the client of the event stream, and that of a turn from its submission to its request's arrival. The server must know
//! the provider: start it with `HOTHOUSE_MODEL__SERVERS__BENCH__BASE_URL=http://127.0.0.1:8095` (see `--provider`), and
//! with as many `HOTHOUSE_WORKER__LIGHT_SLOTS` as there are turns at once.

mod provider;
mod turn;

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use self::provider::Provider;
use self::turn::{Taken, Turn};
use super::latency::Samples;
use super::queue::BenchQueue;
use super::report::Report;
use crate::client::Client;
use crate::output;

/// Clock ticks of /proc in a second.
const TICKS: f64 = 100.0;
/// Bytes of a page of memory.
const PAGE_BYTES: f64 = 4096.0;
/// Submissions under way at once, where their number is what counts and not their time.
const SUBMITTING: usize = 32;
/// How long everything that was asked may take to be written down.
const PATIENCE: Duration = Duration::from_mins(3);

/// Options of `hothouse bench turns`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where this process's provider listens, as the server was told
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8095")]
    provider: SocketAddr,
    /// Turns one after the other
    #[arg(long, value_name = "N", default_value_t = 200)]
    turns: u32,
    /// Turns at once; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    at_once: u32,
    /// Pieces of each of those, fifty a second
    #[arg(long, value_name = "N", default_value_t = 250)]
    pieces: u32,
    /// Mixed calls whose tokens are compared; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    calls: u32,
    /// Process whose CPU time and memory are told: that of `hothouse up`, or of a worker
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// Measures all three.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let provider = Provider::start(args.provider, args.pieces).await?;
    one_by_one(args, client, queue, report).await?;
    if args.at_once > 0 {
        at_once(args, client, queue, report).await?;
    }
    if args.calls > 0 {
        metering(args, &provider, client, queue, report).await?;
    }
    Ok(())
}

async fn one_by_one(args: &Args, client: &Client, queue: &BenchQueue<'_>, report: &mut Report) -> anyhow::Result<()> {
    let bar = output::bar(args.turns.into(), "one by one");
    let mut all = Taken::default();
    for n in 0..args.turns + 5 {
        let turn = Turn::prepare(client, "bench/short").await?;
        let taken = turn.take(&queue.name).await?;
        // The first ones warm everything up.
        if n >= 5 {
            all.append(taken);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    report.latencies("turn → request", all.to_request);
    report.latencies("byte → client", all.to_client);
    Ok(())
}

async fn at_once(args: &Args, client: &Client, queue: &BenchQueue<'_>, report: &mut Report) -> anyhow::Result<()> {
    let prepared = stream::iter(0..args.at_once)
        .map(|_| Turn::prepare(client, "bench/long"))
        .buffer_unordered(SUBMITTING);
    let prepared: Vec<anyhow::Result<Turn<'_>>> = prepared.collect().await;
    let prepared = prepared.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let before = args.pid.map(Process::look).transpose()?;
    let began = Instant::now();
    let turns = prepared.into_iter().map(|turn| turn.take(&queue.name));
    let spinner = output::spinner();
    spinner.set_message("turns at once");
    let taken = futures_util::future::join_all(turns).await;
    let wall = began.elapsed();
    spinner.finish_and_clear();
    let mut all = Taken::default();
    let (mut whole, mut broken) = (0_u32, None);
    for taken in taken {
        match taken {
            Ok(taken) => {
                whole += u32::from(taken.pieces == args.pieces);
                all.append(taken);
            }
            Err(error) => broken = Some(error),
        }
    }
    let why = broken.map(|error| format!("; {error:#}")).unwrap_or_default();
    report.check(
        "all delivered",
        whole == args.at_once,
        format!(
            "{whole} of {} turns at once had all {} pieces{why}",
            args.at_once, args.pieces
        ),
    );
    report.number(
        "pieces",
        f64::from(all.pieces) / wall.as_secs_f64(),
        "a second, over all of it",
    );
    report.latencies("byte, at once", all.to_client);
    if let (Some(before), Some(pid)) = (before, args.pid) {
        let after = Process::look(pid)?;
        let turns = f64::from(args.at_once);
        report.number(
            "CPU",
            (after.cpu_ms - before.cpu_ms) / turns,
            "ms of the process a turn",
        );
        report.number(
            "CPU share",
            (after.cpu_ms - before.cpu_ms) / wall.as_secs_f64() / 10.0,
            "% of one core",
        );
        let bytes = (after.peak_bytes - before.resident_bytes).max(0.0);
        report.number(
            "memory",
            bytes / turns / 1024.0,
            "KiB a turn: peak above what was there before",
        );
    }
    Ok(())
}

async fn metering(
    args: &Args,
    provider: &Provider,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let definition = json!({"name": queue.name, "harness": "chat", "models": ["bench/mixed"]});
    let agent: Value = client.submit(&["agents"], &definition).await?;
    let agent = output::field(&agent, "id");
    let told_before = provider.told();
    let bar = output::bar(args.calls.into(), "mixed calls");
    let path = ["agents", &agent, "runs"];
    let submitted = stream::iter(0..args.calls)
        .map(|n| {
            let body = json!({"input": format!("call {n}"), "queue": queue.name, "max_attempts": 1});
            async move { client.submit::<Value>(&path, &body).await }
        })
        .buffer_unordered(SUBMITTING);
    let mut submitted = std::pin::pin!(submitted);
    while let Some(one) = submitted.next().await {
        one?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    queue.drain().await?;
    let told = provider.told();
    let expected = [
        told.calls - told_before.calls,
        told.usage.input_tokens - told_before.usage.input_tokens,
        told.usage.cached_input_tokens - told_before.usage.cached_input_tokens,
        told.usage.output_tokens - told_before.usage.output_tokens,
    ];
    let metered = metered(client, &agent, expected).await?;
    let names = ["calls", "input", "cached", "output"];
    let said = names.iter().zip(expected).zip(metered);
    let said: Vec<String> = said
        .map(|((name, told), metered)| format!("{name} {metered} of {told}"))
        .collect();
    report.check("metered", metered == expected, said.join(", "));
    client.delete(&["agents", &agent]).await?;
    Ok(())
}

/// The agent's totals, once they are what they should be or nobody can expect it any more.
async fn metered(client: &Client, agent: &str, expected: [u64; 4]) -> anyhow::Result<[u64; 4]> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let read: Value = client.get(&["agents", agent], &[]).await?;
        let totals = &read["totals"];
        let count = |name: &str| totals[name].as_u64().unwrap_or(0);
        let metered = [
            count("calls"),
            count("input_tokens"),
            count("cached_input_tokens"),
            count("output_tokens"),
        ];
        if metered == expected || Instant::now() > give_up_at {
            return Ok(metered);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What /proc says of a process.
struct Process {
    cpu_ms: f64,
    resident_bytes: f64,
    peak_bytes: f64,
}

impl Process {
    fn look(pid: u32) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("no process {pid}"))?;
        // The name, in parentheses, may hold blanks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
        let (user, system, pages) = (number(11), number(12), number(21));
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak_kib = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        ensure!(
            user.is_some() && peak_kib.is_some(),
            "/proc says nothing of process {pid}"
        );
        Ok(Self {
            cpu_ms: (user.unwrap_or(0.0) + system.unwrap_or(0.0)) * 1_000.0 / TICKS,
            resident_bytes: pages.unwrap_or(0.0) * PAGE_BYTES,
            peak_bytes: peak_kib.unwrap_or(0.0) * 1024.0,
        })
    }
}
