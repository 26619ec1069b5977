//! `hothouse doctor`: what this machine needs, what it has, and how to get the rest.

mod machine;
mod sandboxes;
mod servers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::up::{DATA_DIR, LISTEN};
use crate::globals::Globals;
use crate::output;
use crate::services::docker;

/// Options of `hothouse doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data folder that `up` would use
    #[arg(long, env = "HOTHOUSE_DATA_DIR", value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,

    /// The address that `up` would listen on
    #[arg(long, env = "HOTHOUSE_LISTEN", value_name = "IP:PORT", default_value = LISTEN)]
    listen: SocketAddr,

    /// The Docker engine to look for
    #[arg(long, env = "DOCKER_HOST", value_name = "URL", default_value = docker::DEFAULT_HOST)]
    docker_host: String,
}

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Hothouse works, but less well.
    Warn,
    /// Hothouse does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    /// What was found.
    found: String,
    /// How to make it better.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Warn,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Missing,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// Runs the command. The answer is the exit code of the process: 0 when nothing required is missing, else 1.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut checks = vec![machine::system(), machine::kernel(), machine::size(), machine::clock()];
    checks.extend([machine::disk(&args.data_dir), servers::postgres(), servers::redis()]);
    checks.extend([
        servers::data_folder(&args.data_dir),
        servers::port(args.listen, &args.data_dir),
    ]);
    checks.extend(sandboxes::all(&args.docker_host).await);
    let ok = checks.iter().all(|check| check.level != Level::Missing);
    let report = Report { ok, checks };
    if globals.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) -> std::io::Result<()> {
    let rows = report.checks.iter().map(|check| {
        let level = match check.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Missing => "missing",
        };
        [
            check.name.to_owned(),
            level.to_owned(),
            check.found.clone(),
            check.advice.clone().unwrap_or_default(),
        ]
    });
    output::table(["what", "state", "found", "how to get it"], rows.collect())?;
    if report.ok {
        output::note("this machine has what it needs: start with `make up`");
    } else {
        output::note("something that is required is missing: the last column says how to get it");
    }
    Ok(())
}
