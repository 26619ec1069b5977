//! `hothouse paused-keys`: keys of concurrency or rate of which nothing starts for a while.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use crate::args::given;
use crate::client::Client;
use crate::globals::Globals;
use crate::output;

/// Options of `hothouse paused-keys`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the keys that are paused
    List,
    /// Start no more jobs that name a key in `concurrency` or `rate`; those running go on
    Pause {
        // Named otherwise than the option of every command.
        #[arg(value_name = "KEY")]
        name: String,
        /// How long, such as 30s; until it is resumed when not given
        #[arg(long = "for", value_name = "TIME")]
        lasts: Option<String>,
        /// Why, for people
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Start jobs that name a key again
    Resume {
        #[arg(value_name = "KEY")]
        name: String,
    },
}

/// Lists the paused keys, or does what the subcommand says.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let path = ["paused-keys"];
    match args.action {
        None | Some(Action::List) => {
            let keys = client.whole_list(&path).await?;
            output::records(globals.json, &keys, ["key", "until", "created_at", "reason"])?;
        }
        Some(Action::Pause { name, lasts, reason }) => {
            let body = given([
                ("key", Some(name.into())),
                ("for", lasts.map(Value::from)),
                ("reason", reason.map(Value::from)),
            ]);
            let paused: Value = client.post_repeatable(&path, &body).await?;
            output::record(globals.json, &paused)?;
        }
        Some(Action::Resume { name }) => client.delete_matching(&path, &[("key", name)]).await?,
    }
    Ok(ExitCode::SUCCESS)
}
