//! `hothouse jobs`: what there is, what became of it, and another try.

use std::process::ExitCode;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::many::{self, FILTERS, Filters};
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
    page: Page,
}

/// Which jobs to list.
#[derive(Debug, clap::Args)]
struct Page {
    #[command(flatten)]
    filters: Filters,
    /// Most jobs to list, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List jobs, newest first
    List(Page),
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
    /// Submit jobs that have ended once more: those named, of which it prints the new ids, or all that match and were not
    /// repeated before; without `--state` those that failed
    Redrive {
        #[arg(value_name = "JOB", conflicts_with_all = ["Filters", "dry_run"], required_unless_present_any = FILTERS)]
        ids: Vec<Uuid>,
        #[command(flatten)]
        filters: Filters,
        /// Only count those that match
        #[arg(long)]
        dry_run: bool,
    },
}

/// Lists jobs, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action.unwrap_or(Action::List(args.page)) {
        Action::List(page) => list(&client, &page, globals.json).await?,
        Action::Show { id } => {
            let job: Value = client.get(&["jobs", &id.to_string()], &[]).await?;
            output::record(globals.json, &job)?;
        }
        Action::Attempts { id } => attempts(&client, id, globals.json).await?,
        Action::Redrive { ids, filters, dry_run } if ids.is_empty() => {
            return many::run(&client, "redrive", &filters, dry_run, globals).await;
        }
        Action::Redrive { ids, .. } => {
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

async fn list(client: &Client, Page { filters, limit }: &Page, is_json: bool) -> anyhow::Result<()> {
    let metadata: Vec<(String, String)> = filters
        .metadata
        .iter()
        .map(|(name, value)| (format!("metadata.{name}"), value.clone()))
        .collect();
    let mut query: Vec<(&str, String)> = filters.texts().collect();
    query.extend(metadata.iter().map(|(name, value)| (name.as_str(), value.clone())));
    let rows = client.list(&["jobs"], &query, *limit).await?;
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
