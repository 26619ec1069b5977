//! `hothouse cancel`: stop jobs, wherever they are in their life.

use std::process::ExitCode;

use uuid::Uuid;

use crate::client::Client;
use crate::globals::Globals;
use crate::{exit, output, watch};

/// Options of `hothouse cancel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "JOB", required = true)]
    ids: Vec<Uuid>,
}

/// Cancels every job named; one that cannot be cancelled does not spare the others.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
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
