//! `hothouse queues`: list, pause and resume.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse queues`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the queues
    List,
    /// Hand out no more jobs of a queue; those running go on
    Pause { name: String },
    /// Hand out jobs of a queue again
    Resume { name: String },
}

/// Lists the queues, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let (name, verb) = match args.action {
        None | Some(Action::List) => {
            let queues = client.whole_list(&["queues"]).await?;
            output::records(
                globals.json,
                &queues,
                ["name", "paused_at", "queued", "running", "scheduled"],
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Action::Pause { name }) => (name, "pause"),
        Some(Action::Resume { name }) => (name, "resume"),
    };
    let queue: Value = client.post_repeatable(&["queues", &name, verb], &json!({})).await?;
    output::record(globals.json, &queue)?;
    Ok(ExitCode::SUCCESS)
}
