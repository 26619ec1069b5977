//! `hothouse cancel`: stop jobs, wherever they are in their life.

use std::process::ExitCode;

use uuid::Uuid;

use super::many::{self, FILTERS, Filters};
use crate::client::Client;
use crate::globals::Globals;
use crate::{exit, output, watch};

/// Options of `hothouse cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// These jobs; or all that match the filters
    #[arg(value_name = "JOB", conflicts_with_all = ["Filters", "dry_run"], required_unless_present_any = FILTERS)]
    ids: Vec<Uuid>,
    #[command(flatten)]
    filters: Filters,
    /// Only count those that match
    #[arg(long)]
    dry_run: bool,
}

/// Cancels every job named, or all that match; one that cannot be cancelled does not spare the others.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    if args.ids.is_empty() {
        return many::run(&client, "cancel", &args.filters, args.dry_run, globals).await;
    }
    let mut code = ExitCode::SUCCESS;
    for id in args.ids {
        match watch::cancel(&client, id).await {
            Ok(job) if globals.json => output::json(&job)?,
            Ok(job) => output::line(format_args!("{id}\t{}", output::field(&job, "state")))?,
            Err(error) => {
                output::note(format_args!("{id}: {error}"));
                code = exit::FAILED.into();
            }
        }
    }
    Ok(code)
}
