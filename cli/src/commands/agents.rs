//! `hothouse agents`: saved definitions, and one execution of one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::chat;
use crate::args::{JobOptions, OrNone};
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse agents`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the agents
    List,
    /// Show the definition of an agent
    Show {
        #[arg(value_name = "AGENT")]
        agent: String,
    },
    /// Save a definition from a JSON file; `-` reads the standard input
    Create {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Change what a JSON file names of an agent's definition, as its next version; `-` reads the standard input
    Update {
        #[arg(value_name = "AGENT")]
        agent: String,
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List the versions of an agent
    Versions {
        #[arg(value_name = "AGENT")]
        agent: String,
    },
    /// Show what changed between two versions of an agent
    Diff {
        #[arg(value_name = "AGENT")]
        agent: String,
        #[arg(value_name = "FROM")]
        from: u32,
        #[arg(value_name = "TO")]
        to: u32,
    },
    /// Make an earlier version of an agent the current one again
    Rollback {
        #[arg(value_name = "AGENT")]
        agent: String,
        #[arg(value_name = "VERSION")]
        version: u32,
    },
    /// Limit how many runs and turns of an agent run at once
    Limit {
        #[arg(value_name = "AGENT")]
        agent: String,
        #[arg(value_name = "N|none")]
        max_running: OrNone<u32>,
    },
    /// Save a conversation as an agent
    FromConversation {
        #[arg(value_name = "CONVERSATION")]
        conversation: Uuid,
        /// Its name; the conversation's title
        #[arg(short, long)]
        name: Option<String>,
    },
    /// Run an agent once, without a conversation, and show what it does
    Run {
        #[arg(value_name = "AGENT")]
        agent: String,
        #[arg(value_name = "INPUT")]
        input: String,
        #[command(flatten)]
        job: JobOptions,
    },
}

/// Lists the agents, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None | Some(Action::List) => {
            let agents = client.list(&["agents"], &[], usize::MAX).await?;
            output::records(
                globals.json,
                &agents,
                ["id", "name", "harness", "status", "description"],
            )?;
        }
        Some(Action::Show { agent }) => {
            let id = find(&client, &agent).await?.to_string();
            let agent: Value = client.get(&["agents", &id], &[]).await?;
            output::record(globals.json, &agent)?;
        }
        Some(Action::Create { file }) => {
            let agent: Value = client.post_once(&["agents"], &read_json(&file)?).await?;
            output::record(globals.json, &agent)?;
        }
        Some(Action::Update { agent, file }) => {
            let id = find(&client, &agent).await?.to_string();
            let agent: Value = client.patch(&["agents", &id], &read_json(&file)?).await?;
            output::record(globals.json, &agent)?;
        }
        Some(Action::Versions { agent }) => {
            let id = find(&client, &agent).await?.to_string();
            let versions = client.list(&["agents", &id, "versions"], &[], usize::MAX).await?;
            output::records(
                globals.json,
                &versions,
                ["version", "created_at", "harness", "models", "name"],
            )?;
        }
        Some(Action::Diff { agent, from, to }) => {
            let id = find(&client, &agent).await?.to_string();
            let (from, to) = (from.to_string(), to.to_string());
            let diff: Value = client
                .get(&["agents", &id, "versions", &from, "diff", &to], &[])
                .await?;
            show_diff(&diff, globals.json)?;
        }
        Some(Action::Rollback { agent, version }) => {
            let id = find(&client, &agent).await?.to_string();
            let body = json!({ "version": version });
            let agent: Value = client.post_once(&["agents", &id, "rollback"], &body).await?;
            output::record(globals.json, &agent)?;
        }
        Some(Action::Limit { agent, max_running }) => {
            let id = find(&client, &agent).await?.to_string();
            let limits = json!({"max_running": Value::from(max_running)});
            let limits = client.put::<Value>(&["agents", &id, "limits"], &limits).await?;
            output::record(globals.json, &limits)?;
        }
        Some(Action::FromConversation { conversation, name }) => {
            let path = ["conversations", &conversation.to_string(), "agent"];
            let agent: Value = client.post_once(&path, &json!({ "name": name })).await?;
            output::record(globals.json, &agent)?;
        }
        Some(Action::Run { agent, input, job }) => {
            let id = find(&client, &agent).await?;
            let mut body = job.to_fields();
            body.insert("input".to_owned(), json!(input));
            let job: Value = client.submit(&["agents", &id.to_string(), "runs"], &body).await?;
            return chat::watch(&client, &job, globals.json).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The id of an agent that is named by its id or its name.
pub(super) async fn find(client: &Client, agent: &str) -> anyhow::Result<Uuid> {
    if let Ok(id) = agent.parse() {
        return Ok(id);
    }
    let agents = client.list(&["agents"], &[], usize::MAX).await?;
    let mut named = agents.iter().filter(|row| output::field(row, "name") == agent);
    match (named.next(), named.next()) {
        (Some(row), None) => output::field(row, "id").parse().context("the agent's id"),
        (Some(_), Some(_)) => bail!("several agents are named `{agent}`: give the id, see `hothouse agents`"),
        (None, _) => bail!("no agent is named `{agent}`: see `hothouse agents`"),
    }
}

/// Field by field, texts as their lines.
fn show_diff(diff: &Value, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return Ok(output::json(diff)?);
    }
    for change in diff.get("changes").and_then(Value::as_array).into_iter().flatten() {
        output::line(format!("{}:", output::field(change, "field")))?;
        let lines = change.get("lines").and_then(Value::as_array);
        for line in lines.into_iter().flatten().filter_map(Value::as_str) {
            output::line(line)?;
        }
        if lines.is_none() {
            output::line(format!("-{}", change.get("from").unwrap_or(&Value::Null)))?;
            output::line(format!("+{}", change.get("to").unwrap_or(&Value::Null)))?;
        }
    }
    Ok(())
}

fn read_json(path: &Path) -> anyhow::Result<Value> {
    let text = if path == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}
