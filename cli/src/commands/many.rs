//! Acting on every job that matches: the filters as options, and calls until the server says that there are no more.

use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::args::key_value;
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// The names of the options of [`Filters`].
pub(crate) const FILTERS: [&str; 6] = ["state", "kind", "queue", "parent", "metadata", "search"];

/// Which jobs; all that is given must hold.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Filters {
    /// Only jobs in this state: scheduled, queued, running, waiting, retrying, succeeded, failed or cancelled
    #[arg(short, long)]
    pub(crate) state: Option<String>,
    /// Only jobs of this kind: exec, noop, group, `agent_run` or `chat_turn`
    #[arg(short, long)]
    pub(crate) kind: Option<String>,
    /// Only jobs of this queue
    #[arg(short, long)]
    pub(crate) queue: Option<String>,
    /// Only jobs of this group
    #[arg(long, value_name = "JOB")]
    pub(crate) parent: Option<String>,
    /// Only jobs with this note; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Only jobs in which this text is found
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
}

impl Filters {
    /// The fields that hold a text, by their names in the API.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let given = [
            ("state", &self.state),
            ("kind", &self.kind),
            ("queue", &self.queue),
            ("parent_id", &self.parent),
            ("q", &self.search),
        ];
        given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
    }

    fn to_body(&self) -> Map<String, Value> {
        let mut body: Map<String, Value> = self
            .texts()
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        if !self.metadata.is_empty() {
            let notes: Map<String, Value> = self.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            body.insert("metadata".to_owned(), Value::Object(notes));
        }
        body
    }
}

/// Does `deed` (`cancel` or `redrive`) to every job that matches, and says to how many. A dry run only counts.
pub(crate) async fn run(
    client: &Client,
    deed: &str,
    filters: &Filters,
    dry_run: bool,
    globals: &Globals,
) -> anyhow::Result<ExitCode> {
    let mut body = filters.to_body();
    body.insert("dry_run".to_owned(), json!(dry_run));
    let mut matched = 0;
    loop {
        let answer: Value = client.post_repeatable(&["jobs", deed], &body).await?;
        matched += answer["matched"].as_u64().unwrap_or(0);
        let more = answer["more"].as_bool().unwrap_or(false);
        if dry_run || !more {
            return report(matched, more, dry_run, globals);
        }
        output::note(format_args!("{matched} jobs so far"));
        // The same jobs: what is submitted meanwhile, by this too, is not meant.
        body.insert("created_before".to_owned(), answer["created_before"].clone());
    }
}

fn report(matched: u64, more: bool, dry_run: bool, globals: &Globals) -> anyhow::Result<ExitCode> {
    if globals.json {
        output::json(&json!({"matched": matched, "more": more, "dry_run": dry_run}))?;
    } else {
        let least = if more { "at least " } else { "" };
        let would = if dry_run { " would match" } else { "" };
        output::line(format_args!("{least}{matched} jobs{would}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
