//! `hothouse bench claude`: how long it takes from the claim of a turn until Claude Code's first request is at the model.
//!
//! The model is this process: its answers carry the moment at which they were sent. The server must know it, as a provider
//! that speaks Anthropic Messages: start it with `HOTHOUSE_MODEL__SERVERS__BENCH__BASE_URL=http://127.0.0.1:8096` and
//! `HOTHOUSE_MODEL__SERVERS__BENCH__WIRE=anthropic` (see `--provider`). Each turn says in its log how its process came to
//! be, and is counted there.

mod turn;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::DateTime;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::model::scripted::script::Script;
use worker::model::scripted::{SENT_US, Scripted, serve};

use self::turn::{Taken, Talk};
use super::latency::Samples;
use super::queue::BenchQueue;
use super::report::Report;
use crate::client::Client;
use crate::output;

/// How long a process may take to be there before it is asked for.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long a worker may take to say what it has, in microseconds.
const SAYING_US: i64 = 1_000_000;

/// Options of `hothouse bench claude`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where this process's provider listens, as the server was told
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8096")]
    provider: SocketAddr,
    /// Conversations; each has a first turn and a second one
    #[arg(long, value_name = "N", default_value_t = 10)]
    conversations: u32,
    /// First turns whose process is started for them
    #[arg(long, value_name = "N", default_value_t = 10)]
    cold: u32,
    /// Turns at once; 0 leaves them out
    #[arg(long, value_name = "N", default_value_t = 0)]
    at_once: u32,
}

/// What was measured, by how the processes came to be.
type Measured = BTreeMap<String, (Samples, Samples)>;

/// Measures.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let _provider = provider(args.provider).await?;
    let mut measured = Measured::new();
    // Before the others: a process that waits is for the model that was asked for last.
    for _ in 0..args.conversations {
        let talk = Talk::begin(client, "bench/claude").await?;
        add(&mut measured, talk.turn(&queue.name).await?);
        add(&mut measured, talk.turn(&queue.name).await?);
        talk.end().await?;
        waiting(client, turn::now_us()).await?;
    }
    for n in 0..args.cold {
        // A model that nobody has asked for: nothing of it waits.
        let talk = Talk::begin(client, &format!("bench/cold-{n}")).await?;
        add(&mut measured, talk.turn(&queue.name).await?);
        talk.end().await?;
    }
    for (how, name, name_all) in [
        ("started", "cold", "cold, call"),
        ("waiting", "waiting", "waiting, call"),
        ("kept", "next turn", "next, call"),
        ("resumed", "resumed", "resumed, call"),
    ] {
        if let Some((claimed, called)) = measured.remove(how) {
            report.latencies(name, claimed);
            report.latencies(name_all, called);
        }
    }
    if args.at_once > 0 {
        at_once(args.at_once, client, queue, report).await?;
    }
    Ok(())
}

fn add(measured: &mut Measured, taken: Taken) {
    let (claimed, called) = measured.entry(taken.how).or_default();
    claimed.add(taken.since_claim);
    called.add(taken.since_call);
}

/// Turns of as many conversations at once: all of them end well.
async fn at_once(count: u32, client: &Client, queue: &BenchQueue<'_>, report: &mut Report) -> anyhow::Result<()> {
    let mut talks = Vec::new();
    for _ in 0..count {
        talks.push(Talk::begin(client, "bench/claude").await?);
    }
    let begun = Instant::now();
    let taken = futures_util::future::join_all(talks.iter().map(|talk| talk.turn(&queue.name))).await;
    let wall = begun.elapsed();
    let good = taken.iter().filter(|taken| taken.is_ok()).count();
    let why = taken.iter().find_map(|taken| taken.as_ref().err());
    let why = why.map(|error| format!("; {error:#}")).unwrap_or_default();
    let text = format!(
        "{good} of {count} turns at once were taken in {:.1} s{why}",
        wall.as_secs_f64()
    );
    report.check("at once", good == count as usize, text);
    for talk in &talks {
        talk.end().await?;
    }
    Ok(())
}

/// Waits until nothing is being started, and one process waits, as the worker has said it after a moment.
async fn waiting(client: &Client, after_us: i64) -> anyhow::Result<()> {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let read: Value = client.get(&["sandboxes"], &[]).await?;
        if has_spare(&read, after_us) {
            return Ok(());
        }
        if Instant::now() > give_up_at {
            bail!("no sandbox of the environment claude-code waits: {read}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn has_spare(read: &Value, after_us: i64) -> bool {
    let environments = read["data"].as_array().into_iter().flatten();
    let count = |environment: &Value, name: &str| environment[name].as_u64().unwrap_or(0);
    // What it says was so a little before it said it.
    let is_new = |environment: &Value| {
        let seen_at = environment["seen_at"].as_str().map(DateTime::parse_from_rfc3339);
        matches!(seen_at, Some(Ok(at)) if at.timestamp_micros() > after_us + SAYING_US)
    };
    let mut ours =
        environments.filter(|environment| environment["environment"] == "claude-code" && is_new(environment));
    ours.any(|environment| count(environment, "spares") > 0 && count(environment, "creating") == 0)
}

/// The model: a word that carries the moment at which it was sent.
async fn provider(address: SocketAddr) -> anyhow::Result<JoinSet<()>> {
    let stamp = format!("{SENT_US} ");
    let script: Script = serde_json::from_value(json!({
        "piece_chars": stamp.len(), "rules": [{"reply": [{"text": stamp}]}]}))?;
    let scripted = Arc::new(Scripted::built_in().with("*", script));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let mut server = JoinSet::new();
    server.spawn(serve(scripted, listener, CancellationToken::new()));
    output::note(format_args!("the model is at {address}"));
    Ok(server)
}
