//! `hothouse bench throughput`: jobs through the whole path at full speed.
//!
//! Submitters send batches; each waits for the end of the last job of its batch before it sends the next, so that what
//! is outstanding is bounded and nothing polls. The rate is counted afterwards, from the times at which the rows of the
//! jobs say that they ended; so it is what was committed, not what was seen.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::queue::{BenchQueue, Census};
use super::report::Report;
use super::wire::{self, Connection};
use crate::client::{Client, Event, LogPages};
use crate::output;

/// Jobs whose event log is looked at as a whole.
const LOGS_CHECKED: usize = 100;

/// Options of `hothouse bench throughput`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Submitters, each with one batch outstanding
    #[arg(long, value_name = "N", default_value_t = 16)]
    connections: usize,
    /// Jobs of a batch
    #[arg(long, value_name = "N", default_value_t = 500)]
    batch: usize,
    /// Measured time
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
    /// Time before it, in which everything gets warm
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    warm_up: u64,
}

/// What one submitter sends.
#[derive(Debug, Clone)]
struct Submitter {
    address: String,
    headers: Vec<(&'static str, String)>,
    batch: Vec<u8>,
    until: Instant,
}

/// Measures, and checks that every accepted job ended exactly once.
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
    ensure!((1..=1000).contains(&args.batch), "--batch must be 1 to 1000");
    let accepted = load(args, client, queue).await;
    queue.drain().await?;
    let (accepted, window) = accepted?;

    let census = queue.census(accepted.len()).await?;
    rates(report, &census, window, args.seconds);
    let unique: HashSet<Uuid> = census.ids.iter().copied().collect();
    let is_same = unique.len() == census.ids.len() && accepted.iter().copied().collect::<HashSet<_>>() == unique;
    let sizes = format!(
        "{} rows of {} accepted jobs, the same ids: {is_same}",
        census.ids.len(),
        accepted.len()
    );
    report.check("one row a job", is_same, sizes);
    let is_all = census.ends.keys().all(|(state, _)| state == "succeeded");
    report.check("all succeeded", is_all, census.told());
    let step = (accepted.len() / LOGS_CHECKED).max(1);
    let sample: Vec<Uuid> = accepted.iter().copied().step_by(step).collect();
    check_logs(report, client, &sample).await
}

/// Feeds the queue for the whole time; answers the ids accepted and the beginning of the measured time.
async fn load(args: &Args, client: &Client, queue: &BenchQueue<'_>) -> anyhow::Result<(Vec<Uuid>, DateTime<Utc>)> {
    let spinner = output::spinner();
    spinner.set_message("measuring");
    let warm_up = Duration::from_secs(args.warm_up);
    let from = server_now(client).await? + warm_up;
    let job = json!({"kind": "noop", "queue": queue.name});
    let body = json!({"jobs": vec![job; args.batch]}).to_string();
    let submitter = Submitter {
        address: client.address()?,
        headers: client
            .raw_headers()
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
            .collect(),
        batch: wire::request("POST", "/api/v1/jobs/batch", &client.raw_headers(), body.as_bytes()),
        // A second more, so that the last measured second is as full as the others.
        until: Instant::now() + warm_up + Duration::from_secs(args.seconds + 1),
    };
    let mut submitters = JoinSet::new();
    for _ in 0..args.connections {
        submitters.spawn(submit(submitter.clone()));
    }
    let mut accepted = Vec::new();
    while let Some(ids) = submitters.join_next().await {
        accepted.extend(ids??);
    }
    spinner.finish_and_clear();
    Ok((accepted, from))
}

async fn submit(submitter: Submitter) -> anyhow::Result<Vec<Uuid>> {
    let mut connection = Connection::open(&submitter.address).await?;
    let mut accepted = Vec::new();
    while Instant::now() < submitter.until {
        let answer = connection.exchange(&submitter.batch).await?;
        let text = || {
            String::from_utf8_lossy(answer.body)
                .chars()
                .take(300)
                .collect::<String>()
        };
        ensure!(
            answer.status == 202,
            "a batch was answered with {}: {}",
            answer.status,
            text()
        );
        let batch: Batch = serde_json::from_slice(answer.body).context("the answer to a batch")?;
        let jobs = batch
            .data
            .into_iter()
            .map(|item| item.job.map(|job| job.id).context("a job of a batch was refused"));
        let ids: Vec<Uuid> = jobs.collect::<anyhow::Result<_>>()?;
        let last = ids.last().copied().context("an empty answer to a batch")?;
        accepted.extend(ids);
        wait(&mut connection, &submitter, last).await?;
    }
    Ok(accepted)
}

/// Waits until a job has ended.
async fn wait(connection: &mut Connection, submitter: &Submitter, id: Uuid) -> anyhow::Result<()> {
    let headers: Vec<(&str, &str)> = submitter
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let request = wire::request("GET", &format!("/api/v1/jobs/{id}?wait=30s"), &headers, b"");
    let give_up_at = Instant::now() + Duration::from_mins(2);
    loop {
        let answer = connection.exchange(&request).await?;
        ensure!(
            answer.status == 200,
            "waiting for a job was answered with {}",
            answer.status
        );
        let job: Ended = serde_json::from_slice(answer.body).context("a job")?;
        if job.finished_at.is_some() {
            return Ok(());
        }
        ensure!(Instant::now() < give_up_at, "job {id} has not ended after two minutes");
    }
}

/// The server's clock, by a job that does nothing: the rows carry its times, not ours.
async fn server_now(client: &Client) -> anyhow::Result<DateTime<Utc>> {
    let job: crate::client::Job = client.submit(&["jobs"], &json!({"kind": "noop"})).await?;
    Ok(job.created_at)
}

/// Rows that ended in the measured time: on the whole, and in its slowest second.
fn rates(report: &mut Report, census: &Census, from: DateTime<Utc>, seconds: u64) {
    let mut ended = vec![0_u32; usize::try_from(seconds).unwrap_or_default()];
    for at in &census.finished_at {
        let second = usize::try_from((*at - from).num_milliseconds().div_euclid(1000)).ok();
        if let Some(count) = second.and_then(|second| ended.get_mut(second)) {
            *count += 1;
        }
    }
    let total: u32 = ended.iter().sum();
    report.number(
        "ended",
        f64::from(total) / f64::from(u32::try_from(seconds).unwrap_or(u32::MAX)),
        "rows/s",
    );
    report.number(
        "slowest second",
        f64::from(ended.iter().copied().min().unwrap_or_default()),
        "rows",
    );
}

/// Reads whole event logs: each must be strictly increasing and have one terminal event, its last.
async fn check_logs(report: &mut Report, client: &Client, ids: &[Uuid]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for id in ids {
        let mut log = LogPages::new(client, *id, None);
        let mut events: Vec<Event> = Vec::new();
        while let Some(page) = log.next().await? {
            events.extend(page);
        }
        let is_rising = events.is_sorted_by(|one, next| one.seq < next.seq);
        let ends = events.iter().filter(|event| event.is_terminal()).count();
        if !is_rising || ends != 1 || !events.last().is_some_and(Event::is_terminal) {
            wrong.push(id.to_string());
        }
    }
    let told = format!(
        "{} of {} logs read have one terminal event, the last; wrong: {wrong:?}",
        ids.len() - wrong.len(),
        ids.len()
    );
    report.check("logs whole", wrong.is_empty(), told);
    Ok(())
}

#[derive(Deserialize)]
struct Batch {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    job: Option<Id>,
}

#[derive(Deserialize)]
struct Id {
    id: Uuid,
}

#[derive(Deserialize)]
struct Ended {
    finished_at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_refuses_one_job_is_read() {
        let text = r#"{"data":[{"index":0,"job":{"id":"0193f000-0000-7000-8000-000000000001","x":1}},{"index":1,"error":{}}]}"#;
        let batch: Batch = serde_json::from_str(text).unwrap();
        assert!(batch.data[0].job.is_some() && batch.data[1].job.is_none());
    }
}
