//! `hothouse queues`: list, limit, pause and resume.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::args::{OrNone, Starts, given};
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
    /// Change the weight and the limits of a queue, for all tenants (admin keys only)
    Set(Set),
    /// Hand out no more jobs of a queue; those running go on
    Pause { name: String },
    /// Hand out jobs of a queue again
    Resume { name: String },
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
struct Set {
    name: String,
    /// Its share of the workers, against the weights of the others
    #[arg(long, value_name = "N", group = "change")]
    weight: Option<u32>,
    /// Most of its jobs that run at once
    #[arg(long, value_name = "N|none", group = "change")]
    max_running: Option<OrNone<u32>>,
    /// Most of its jobs that start within a time, such as 10/1m
    #[arg(long, value_name = "N/TIME|none", group = "change")]
    rate: Option<OrNone<Starts>>,
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
                [
                    "name",
                    "paused_at",
                    "queued",
                    "running",
                    "scheduled",
                    "weight",
                    "max_running",
                    "rate",
                ],
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Action::Set(set)) => {
            let body = given([
                ("weight", set.weight.map(Value::from)),
                ("max_running", set.max_running.map(Value::from)),
                ("rate", set.rate.map(Value::from)),
            ]);
            let queue: Value = client.patch(&["queues", &set.name], &body).await?;
            output::record(globals.json, &queue)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Action::Pause { name }) => (name, "pause"),
        Some(Action::Resume { name }) => (name, "resume"),
    };
    let queue: Value = client.post_repeatable(&["queues", &name, verb], &json!({})).await?;
    output::record(globals.json, &queue)?;
    Ok(ExitCode::SUCCESS)
}
