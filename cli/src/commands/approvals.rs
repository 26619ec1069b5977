//! `hothouse approvals`: what agents ask before they run a tool.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse approvals`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List what is asked at present
    List,
    /// Let a tool run
    Approve(Answer),
    /// Do not let a tool run
    Deny(Answer),
}

#[derive(Debug, clap::Args)]
struct Answer {
    #[arg(value_name = "ID")]
    id: Uuid,
    /// Say this to the agent's model
    #[arg(short, long, value_name = "TEXT")]
    comment: Option<String>,
}

/// Lists what is asked at present, or answers.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let (answer, is_approved) = match args.action {
        None | Some(Action::List) => {
            let open = client
                .list(&["approvals"], &[("state", "open".to_owned())], usize::MAX)
                .await?;
            output::records(globals.json, &open, ["id", "name", "input", "deadline", "job_id"])?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Action::Approve(answer)) => (answer, true),
        Some(Action::Deny(answer)) => (answer, false),
    };
    let body = json!({"approve": is_approved, "comment": answer.comment});
    let approval: Value = client
        .post_repeatable(&["approvals", &answer.id.to_string()], &body)
        .await?;
    output::record(globals.json, &approval)?;
    Ok(ExitCode::SUCCESS)
}
