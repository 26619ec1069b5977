//! The queue of a measurement: its own, emptied and resumed when the measurement is over.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::ensure;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::Client;
use crate::output;

/// How long the jobs that are left may take to end.
const DRAIN_LIMIT: Duration = Duration::from_mins(5);

/// How often it is looked whether jobs have ended: rarely, because each look takes a part of what is measured, and when they
/// ended their rows say.
const LOOK: Duration = Duration::from_secs(2);

/// How often jobs that have not ended are cancelled.
const CANCEL: Duration = Duration::from_millis(200);

/// A queue that nobody else uses.
#[derive(Debug)]
pub(super) struct BenchQueue<'c> {
    client: &'c Client,
    pub(super) name: String,
    is_paused: Cell<bool>,
}

impl<'c> BenchQueue<'c> {
    /// A queue with a fresh name.
    pub(super) fn new(client: &'c Client, measurement: &str) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let short: String = id.chars().take(8).collect();
        Self::named(client, format!("bench-{measurement}-{short}"))
    }

    /// A queue of this name.
    pub(super) fn named(client: &'c Client, name: String) -> Self {
        Self {
            client,
            name,
            is_paused: Cell::new(false),
        }
    }

    /// Keeps its jobs from being handed out, until it is cleaned up.
    pub(super) async fn pause(&self) -> anyhow::Result<()> {
        self.is_paused.set(true);
        self.switch("pause").await
    }

    /// Lets its jobs be handed out.
    pub(super) async fn resume(&self) -> anyhow::Result<()> {
        self.is_paused.set(false);
        self.switch("resume").await
    }

    async fn switch(&self, verb: &str) -> anyhow::Result<()> {
        let path = ["queues", &self.name, verb];
        self.client.post_repeatable::<Value>(&path, &json!({})).await?;
        Ok(())
    }

    /// Waits until all its jobs have ended. They may have done so for a while, so who measures a time asks the rows.
    pub(super) async fn drain(&self) -> anyhow::Result<()> {
        self.until_over(LOOK, async || Ok(())).await
    }

    /// Cancels what has not ended, and leaves the queue as a queue that was never used.
    pub(super) async fn clean_up(&self) -> anyhow::Result<()> {
        if self.is_paused.get() {
            // Workers end what does nothing faster than it can be cancelled one by one.
            self.switch("resume").await?;
        }
        let body = json!({"queue": self.name});
        // A call cancels no more than so many jobs, and a running one takes its time.
        self.until_over(CANCEL, async || {
            self.client.post_repeatable::<Value>(&["jobs", "cancel"], &body).await?;
            Ok(())
        })
        .await
    }

    /// Does something every so often until no job is open.
    async fn until_over(&self, pause: Duration, step: impl AsyncFn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let give_up_at = Instant::now() + DRAIN_LIMIT;
        let spinner = output::spinner();
        spinner.set_message("waiting for the end of all jobs");
        while self.has_open_jobs().await? {
            ensure!(
                Instant::now() < give_up_at,
                "queue {} has jobs that do not end",
                self.name
            );
            step().await?;
            tokio::time::sleep(pause).await;
        }
        spinner.finish_and_clear();
        Ok(())
    }

    async fn has_open_jobs(&self) -> anyhow::Result<bool> {
        for state in ["queued", "running", "retrying"] {
            let filters = [("queue", self.name.clone()), ("state", state.to_owned())];
            if !self.client.list(&["jobs"], &filters, 1).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All its jobs, by what became of them: (state, claims) → how many, and the ids.
    pub(super) async fn census(&self, expected: usize) -> anyhow::Result<Census> {
        let bar = output::bar(expected.try_into().unwrap_or_default(), "checking each job");
        let mut census = Census::default();
        self.each_job(|job| {
            bar.inc(1);
            *census.ends.entry((job.state, job.attempt)).or_default() += 1;
            census.started_at.extend(job.started_at);
            census.finished_at.extend(job.finished_at);
            census.ids.push(job.id);
        })
        .await?;
        bar.finish_and_clear();
        Ok(census)
    }

    /// When each of its jobs was last started.
    pub(super) async fn starts(&self) -> anyhow::Result<HashMap<Uuid, DateTime<Utc>>> {
        let mut starts = HashMap::new();
        self.each_job(|job| starts.extend(job.started_at.map(|at| (job.id, at))))
            .await?;
        Ok(starts)
    }

    async fn each_job(&self, mut visit: impl FnMut(Listed)) -> anyhow::Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("queue", self.name.clone()), ("limit", Client::PAGE_ROWS.to_string())];
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page: JobPage = self.client.get(&["jobs"], &query).await?;
            page.data.into_iter().for_each(&mut visit);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }
}

/// What became of the jobs of a queue.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// (state, claims) → how many.
    pub(super) ends: BTreeMap<(String, u32), usize>,
    pub(super) started_at: Vec<DateTime<Utc>>,
    pub(super) finished_at: Vec<DateTime<Utc>>,
    pub(super) ids: Vec<Uuid>,
}

impl Census {
    /// The counts as a sentence.
    pub(super) fn told(&self) -> String {
        let ends = self
            .ends
            .iter()
            .map(|((state, attempt), count)| format!("{count} {state} after {attempt} claims"));
        ends.collect::<Vec<_>>().join(", ")
    }
}

/// A page of jobs with only what a census needs: there may be a million of them.
#[derive(serde::Deserialize)]
struct JobPage {
    data: Vec<Listed>,
    next_cursor: Option<String>,
}

#[derive(serde::Deserialize)]
struct Listed {
    id: Uuid,
    state: String,
    attempt: u32,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}
