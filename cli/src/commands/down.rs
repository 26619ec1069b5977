//! `hothouse down`: drain and stop what `up` started.

use std::process::ExitCode;

use crate::globals::Globals;

/// Options of `hothouse down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command. The answer is the exit code of the process: 0 done, 1 failed.
pub(crate) async fn run(_args: Args, _globals: &Globals) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`hothouse down` is not built yet")
}
