//! `hothouse workers`: who runs jobs, and taking one out of service.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse workers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the workers, and those that fell silent within the last hour
    List,
    /// Let a worker finish what it runs and take nothing more
    Drain {
        #[arg(value_name = "WORKER")]
        id: Uuid,
    },
}

/// Lists the workers, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    match args.action {
        None | Some(Action::List) => {
            let workers = client.whole_list(&["workers"]).await?;
            let fields = [
                "id",
                "name",
                "state",
                "slots",
                "labels",
                "queues",
                "driver",
                "running",
                "seen_at",
                "draining_at",
                "stalled",
            ];
            output::records(globals.json, &workers, fields)?;
        }
        Some(Action::Drain { id }) => {
            let path = ["workers", &id.to_string(), "drain"];
            let answer: Value = client.post_repeatable(&path, &json!({})).await?;
            output::record(globals.json, &answer)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
