//! `hothouse jobs`: what there is, what became of it, and another try.

use std::process::ExitCode;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::key_value;
use crate::client::{Attempt, Client, Job};
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse jobs`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    filters: Filters,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show everything about a job
    Show {
        #[arg(value_name = "JOB")]
        id: Uuid,
    },
    /// List the attempts of a job
    Attempts {
        #[arg(value_name = "JOB")]
        id: Uuid,
    },
    /// Submit jobs that have ended once more; prints the ids of the new ones
    Redrive {
        #[arg(value_name = "JOB", required = true)]
        ids: Vec<Uuid>,
    },
}

#[derive(Debug, clap::Args)]
struct Filters {
    /// Only jobs in this state: scheduled, queued, running, waiting, retrying, succeeded, failed or cancelled
    #[arg(short, long)]
    state: Option<String>,
    /// Only jobs of this kind: exec, noop, `agent_run` or `chat_turn`
    #[arg(short, long)]
    kind: Option<String>,
    /// Only jobs of this queue
    #[arg(short, long)]
    queue: Option<String>,
    /// Only jobs with this note; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// Only jobs in which this text is found
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Most jobs to list, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// Lists jobs, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None => list(&client, &args.filters, globals.json).await?,
        Some(Action::Show { id }) => {
            let job: Value = client.get(&["jobs", &id.to_string()], &[]).await?;
            output::record(globals.json, &job)?;
        }
        Some(Action::Attempts { id }) => attempts(&client, id, globals.json).await?,
        Some(Action::Redrive { ids }) => {
            for id in ids {
                let job: Value = client.submit(&["jobs", &id.to_string(), "redrive"], &json!({})).await?;
                if globals.json {
                    output::json(&job)?;
                } else {
                    output::line(output::field(&job, "id"))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, filters: &Filters, is_json: bool) -> anyhow::Result<()> {
    let metadata: Vec<(String, String)> = filters
        .metadata
        .iter()
        .map(|(name, value)| (format!("metadata.{name}"), value.clone()))
        .collect();
    let given = [
        ("state", &filters.state),
        ("kind", &filters.kind),
        ("queue", &filters.queue),
        ("q", &filters.search),
    ];
    let mut query: Vec<(&str, String)> = given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect();
    query.extend(metadata.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let rows = client.list(&["jobs"], &query, filters.limit).await?;
    if is_json {
        return Ok(rows.iter().try_for_each(output::json)?);
    }
    let now = SystemTime::now().into();
    let jobs: Vec<Job> = rows.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    let rows = jobs.iter().map(|job| row(job, now)).collect();
    Ok(output::table(
        ["ID", "KIND", "STATE", "PRI", "QUEUE", "AGE", "TOOK", "ERROR"],
        rows,
    )?)
}

fn row(job: &Job, now: DateTime<Utc>) -> [String; 8] {
    [
        job.id.to_string(),
        job.kind.clone(),
        job.state.to_string(),
        job.priority.to_string(),
        job.queue.clone(),
        between(Some(job.created_at), Some(now)),
        between(job.started_at, job.finished_at),
        job.error.as_ref().map(|error| error.code.clone()).unwrap_or_default(),
    ]
}

async fn attempts(client: &Client, id: Uuid, is_json: bool) -> anyhow::Result<()> {
    let rows = client.whole_list(&["jobs", &id.to_string(), "attempts"]).await?;
    if is_json {
        return Ok(rows.iter().try_for_each(output::json)?);
    }
    let attempts: Vec<Attempt> = rows.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    let rows = attempts.into_iter().map(|attempt| {
        [
            attempt.number.to_string(),
            attempt.worker_id.unwrap_or_default(),
            attempt.started_at.map(|at| at.to_rfc3339()).unwrap_or_default(),
            between(attempt.started_at, attempt.finished_at),
            attempt.outcome.unwrap_or_default(),
            attempt
                .error
                .map(|error| format!("{}: {}", error.code, error.message))
                .unwrap_or_default(),
        ]
    });
    Ok(output::table(
        ["ATTEMPT", "WORKER", "STARTED", "TOOK", "OUTCOME", "ERROR"],
        rows.collect(),
    )?)
}

/// The time between two moments; nothing when one of them has not come.
fn between(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => output::duration((to - from).to_std().unwrap_or_default()),
        _ => String::new(),
    }
}
