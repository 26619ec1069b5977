//! `hothouse down`: drain and stop what `up` started in this folder.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use nix::sys::signal::Signal;
use serde_json::json;

use super::up::{DATA_DIR, DRAIN};
use crate::globals::Globals;
use crate::output;
use crate::services::folder::{DataFolder, Locking};
use crate::services::process;
use crate::services::progress::Step;
use crate::services::stores::Stores;

/// Beyond draining: the databases' own ends.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// Options of `hothouse down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data folder in which `up` runs
    #[arg(long, env = "HOTHOUSE_DATA_DIR", value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,

    /// Do not wait for running jobs; they are run again at the next start
    #[arg(long)]
    now: bool,
}

/// Runs the command. The answer is the exit code of the process: 0 when nothing runs any more, else 1.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    if !args.data_dir.exists() {
        return told(
            globals,
            false,
            &format!("nothing to stop: there is no {}", args.data_dir.display()),
        );
    }
    let folder = DataFolder::open(&args.data_dir)?;
    let was_running = stop_up(&folder, args.now).await?;
    let left_over = Stores::stop_left_over(&folder).await;
    match (was_running, left_over) {
        (true, _) => told(globals, true, "Hothouse has stopped"),
        (false, 0) => told(globals, false, "nothing to stop: Hothouse does not run here"),
        (false, _) => told(
            globals,
            true,
            "stopped the databases that an interrupted `hothouse up` had left behind",
        ),
    }
}

/// Asks a running `up` to stop and waits until it has. Returns whether there was one.
async fn stop_up(folder: &DataFolder, now: bool) -> anyhow::Result<bool> {
    let pid = match folder.lock()? {
        Locking::Held(_) => return Ok(false),
        Locking::Busy(Some(pid)) => pid,
        Locking::Busy(None) => bail!("`hothouse up` is starting this very moment: try again"),
    };
    let step = Step::begin("stopping");
    step.now("waiting for running jobs");
    process::send(pid, Signal::SIGTERM);
    if now {
        // The second signal is the hard one; the first must have been heard before.
        tokio::time::sleep(Duration::from_millis(200)).await;
        process::send(pid, Signal::SIGTERM);
    }
    if !process::wait_until(DRAIN + STOP_LIMIT, || !folder.is_held()).await {
        bail!(
            "`hothouse up` (pid {pid}) has not ended after {} s: see its output, or end it with `kill -9 {pid}` and \
               run `hothouse down` again",
            (DRAIN + STOP_LIMIT).as_secs()
        );
    }
    step.done("everything has ended");
    Ok(true)
}

fn told(globals: &Globals, stopped: bool, text: &str) -> anyhow::Result<ExitCode> {
    if globals.json {
        output::json(&json!({ "stopped": stopped, "detail": text }))?;
    } else {
        output::line(text)?;
    }
    Ok(ExitCode::SUCCESS)
}
