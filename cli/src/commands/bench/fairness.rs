//! `hothouse bench fairness`: how long one job of a tenant waits while others have a backlog.
//!
//! The queue gets a limit of running jobs, so that the number of slots is the same wherever it is measured. The backlog
//! is loaded while the queue is paused; then single jobs of tenants that have nothing else are submitted one after the
//! other, and their rows say how long each waited. The rows of the backlog say when slots were released: jobs that began
//! together end together, so that the two releases that a single job may have to wait for may be a whole job away. What
//! counts is the time from the second release after its submission. The tenants, named `bench-fairness-<n>`, are used
//! again by the next measurement.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::latency::Samples;
use super::queue::BenchQueue;
use super::report::Report;
use super::wire::{self, Connection};
use crate::client::Client;
use crate::output;

/// Jobs of one batch.
const BATCH: usize = 1_000;
/// Connections that load the backlog.
const LOADERS: usize = 4;
/// What a single job may wait after the second slot was released.
const ALLOWANCE: Duration = Duration::from_millis(20);

/// Options of `hothouse bench fairness`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Jobs that others have waiting
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    backlog: usize,
    /// Tenants among whom the backlog is spread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    tenants: u32,
    /// Single jobs, each of a tenant of its own
    #[arg(long, value_name = "N", default_value_t = 200)]
    samples: u32,
    /// Slots that all of them share
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    slots: u32,
    /// How long each job holds its slot, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50)]
    duration: u64,
    /// Time between two single jobs, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 73)]
    pause: u64,
}

/// Calls in the name of any tenant.
#[derive(Debug, Clone)]
struct Caller {
    address: String,
    headers: Vec<(&'static str, String)>,
}

impl Caller {
    fn new(client: &Client) -> anyhow::Result<Self> {
        let headers = client.raw_headers().into_iter();
        Ok(Self {
            address: client.address()?,
            headers: headers
                .filter(|(name, _)| *name != "x-tenant-id")
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
        })
    }

    async fn call(
        &self,
        connection: &mut Connection,
        tenant: Option<&str>,
        (method, path): (&str, &str),
        body: &Value,
    ) -> anyhow::Result<Value> {
        let mut headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        headers.extend(tenant.map(|tenant| ("x-tenant-id", tenant)));
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = wire::request(method, &format!("/api/v1{path}"), &headers, body.as_bytes());
        let answer = connection.exchange(&request).await?;
        let text = String::from_utf8_lossy(answer.body);
        let start: String = text.chars().take(300).collect();
        ensure!(
            answer.status < 300,
            "{method} {path} was answered with {}: {start}",
            answer.status
        );
        serde_json::from_str(&text).with_context(|| format!("the answer to {method} {path}"))
    }
}

/// Measures, and checks that at p99 a job starts soon after two slots were released.
pub(super) async fn run(
    args: &Args,
    client: &Client,
    queue: &BenchQueue<'_>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let caller = Caller::new(client)?;
    let mut connection = Connection::open(&caller.address).await?;
    let spinner = output::spinner();
    spinner.set_message("making tenants");
    let names = (args.tenants + args.samples) as usize;
    let tenants = tenants(client, &caller, &mut connection, names).await?;
    let (flood, singles) = tenants.split_at(args.tenants as usize);
    queue.pause().await?;
    let path = format!("/queues/{}", queue.name);
    let limit = json!({"max_running": args.slots});
    caller.call(&mut connection, None, ("PATCH", &path), &limit).await?;
    spinner.set_message("loading the backlog");
    load(args, &caller, &queue.name, flood).await?;
    spinner.set_message("measuring");
    let resume = format!("{path}/resume");
    caller
        .call(&mut connection, None, ("POST", &resume), &json!({}))
        .await?;
    tokio::time::sleep(Duration::from_millis(args.duration * 10)).await;
    let waited = measure(args, &caller, &queue.name, singles).await;
    // What is left would run while it is read and cancelled.
    queue.pause().await?;
    spinner.set_message("reading the releases");
    let released = releases(args, &caller, &queue.name, &tenants).await;
    spinner.set_message("cancelling the backlog");
    cancel(&caller, &queue.name, &tenants).await?;
    let unlimited = json!({"max_running": null});
    caller.call(&mut connection, None, ("PATCH", &path), &unlimited).await?;
    spinner.finish_and_clear();

    let (waited, released) = (waited?, released?);
    report.remark(
        "backlog",
        format!(
            "{} jobs of {} tenants, {} slots of {} ms",
            args.backlog, args.tenants, args.slots, args.duration
        ),
    );
    let (mut all, mut late) = (Samples::default(), Samples::default());
    for (created_at, started_at) in waited {
        let second = released[released.partition_point(|at| *at < created_at)..].get(1);
        all.add((started_at - created_at).to_std().unwrap_or_default());
        late.add(second.map_or(Duration::ZERO, |second| {
            (started_at - *second).to_std().unwrap_or_default()
        }));
    }
    let p99 = late.clone().summary().map_or(f64::INFINITY, |summary| summary.p99_ms);
    report.latencies("created → started", all);
    report.latencies("2nd release → started", late);
    let told = format!(
        "p99 {p99:.1} ms after the second release; {} ms are allowed",
        ALLOWANCE.as_millis()
    );
    report.check("nobody waits", p99 <= ALLOWANCE.as_secs_f64() * 1e3, told);
    Ok(())
}

/// When slots became free, in order: the ends of the last jobs, some more than were measured.
async fn releases(args: &Args, caller: &Caller, queue: &str, tenants: &[String]) -> anyhow::Result<Vec<DateTime<Utc>>> {
    let mut connection = Connection::open(&caller.address).await?;
    let mut at = Vec::new();
    for tenant in tenants {
        let mut cursor = String::new();
        loop {
            let path = format!("/jobs?queue={queue}&state=succeeded&limit=200{cursor}");
            let page = caller
                .call(&mut connection, Some(tenant), ("GET", &path), &Value::Null)
                .await?;
            for job in page["data"].as_array().into_iter().flatten() {
                at.push(serde_json::from_value(job["finished_at"].clone())?);
            }
            let Some(next) = page["next_cursor"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        ensure!(
            at.len() <= args.backlog + tenants.len(),
            "more jobs ended than were submitted"
        );
    }
    at.sort_unstable();
    Ok(at)
}

/// The ids of so many tenants; those that are missing are made.
async fn tenants(
    client: &Client,
    caller: &Caller,
    connection: &mut Connection,
    count: usize,
) -> anyhow::Result<Vec<String>> {
    let known: HashMap<String, String> = client
        .list(&["tenants"], &[], 1_000_000)
        .await?
        .iter()
        .filter_map(|tenant| Some((tenant["name"].as_str()?.to_owned(), tenant["id"].as_str()?.to_owned())))
        .collect();
    let mut ids = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("bench-fairness-{number}");
        let id = if let Some(id) = known.get(&name) {
            id.clone()
        } else {
            let body = json!({"name": name});
            let made = caller.call(connection, None, ("POST", "/tenants"), &body).await?;
            made["id"].as_str().unwrap_or_default().to_owned()
        };
        ids.push(id);
    }
    Ok(ids)
}

/// Spreads the backlog evenly.
async fn load(args: &Args, caller: &Caller, queue: &str, tenants: &[String]) -> anyhow::Result<()> {
    let job = json!({"kind": "noop", "queue": queue, "input": {"duration": format!("{}ms", args.duration)}});
    let mut batches: Vec<(String, usize)> = Vec::new();
    for (index, tenant) in tenants.iter().enumerate() {
        let mut left = args.backlog * (index + 1) / tenants.len() - args.backlog * index / tenants.len();
        while left > 0 {
            let size = left.min(BATCH);
            batches.push((tenant.clone(), size));
            left -= size;
        }
    }
    let mut loaders = JoinSet::new();
    for loader in 0..LOADERS {
        let mine: Vec<_> = batches.iter().skip(loader).step_by(LOADERS).cloned().collect();
        let (caller, job) = (caller.clone(), job.clone());
        loaders.spawn(async move {
            let mut connection = Connection::open(&caller.address).await?;
            for (tenant, size) in mine {
                let body = json!({"jobs": vec![&job; size]});
                let batch = ("POST", "/jobs/batch");
                caller.call(&mut connection, Some(&tenant), batch, &body).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(loaded) = loaders.join_next().await {
        loaded??;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Row {
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
}

/// A single job: when it was submitted, and when it began.
type Single = (DateTime<Utc>, DateTime<Utc>);

/// Single jobs, at fixed times whatever becomes of them.
async fn measure(args: &Args, caller: &Caller, queue: &str, tenants: &[String]) -> anyhow::Result<Vec<Single>> {
    let job = json!({"kind": "noop", "queue": queue, "input": {"duration": format!("{}ms", args.duration)}});
    let mut singles = JoinSet::new();
    for tenant in tenants {
        let (caller, job, tenant) = (caller.clone(), job.clone(), tenant.clone());
        singles.spawn(async move {
            let mut connection = Connection::open(&caller.address).await?;
            let made = caller
                .call(&mut connection, Some(&tenant), ("POST", "/jobs"), &job)
                .await?;
            let path = format!("/jobs/{}?wait=30s", made["id"].as_str().unwrap_or_default());
            let ended = caller
                .call(&mut connection, Some(&tenant), ("GET", &path), &Value::Null)
                .await?;
            let row: Row = serde_json::from_value(ended)?;
            let started_at = row.started_at.context("a single job did not start within 30 s")?;
            anyhow::Ok((row.created_at, started_at))
        });
        tokio::time::sleep(Duration::from_millis(args.pause)).await;
    }
    let mut waited = Vec::new();
    while let Some(single) = singles.join_next().await {
        waited.push(single??);
    }
    Ok(waited)
}

/// Cancels what is left of every tenant, of several at a time.
async fn cancel(caller: &Caller, queue: &str, tenants: &[String]) -> anyhow::Result<()> {
    let mut cancels = JoinSet::new();
    for loader in 0..LOADERS {
        let mine: Vec<_> = tenants.iter().skip(loader).step_by(LOADERS).cloned().collect();
        let (caller, body) = (caller.clone(), json!({"queue": queue}));
        cancels.spawn(async move {
            let mut connection = Connection::open(&caller.address).await?;
            for tenant in mine {
                let many = ("POST", "/jobs/cancel");
                while caller.call(&mut connection, Some(&tenant), many, &body).await?["more"] == true {}
            }
            anyhow::Ok(())
        });
    }
    while let Some(cancelled) = cancels.join_next().await {
        cancelled??;
    }
    Ok(())
}
