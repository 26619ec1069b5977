//! `hothouse bench scheduler`: schedules at scale.
//!
//! It needs no running Hothouse: it starts a Postgres and a Redis of its own in a temporary folder, fills them, and runs
//! one scheduler as a process of its own, so that what it costs can be told from what the measuring costs.

mod cases;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use common::clock::Clock;
use common::config;
use common::health::Health;
use common::lifecycle::Lifecycle;

use self::stage::Stage;
use super::machine::Machine;
use super::report::Report;
use crate::exit;
use crate::globals::Globals;

/// Options of `hothouse bench scheduler`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    case: Case,
}

#[derive(Debug, Subcommand)]
enum Case {
    /// Many schedules, of which some are due in the same second: how soon are all of them jobs
    Burst {
        /// How many schedules there are
        #[arg(long, default_value_t = 100_000)]
        schedules: usize,
        /// How many of them are due together
        #[arg(long, default_value_t = 10_000)]
        due: usize,
    },
    /// A steady load: how long after its due time can each job be claimed
    Steady {
        /// Fires a second
        #[arg(long, default_value_t = 100)]
        rate: usize,
        /// For how long
        #[arg(long, default_value_t = 30)]
        seconds: usize,
    },
    /// Nothing is due: what does the scheduler cost
    Idle {
        /// How many schedules there are
        #[arg(long, default_value_t = 100_000)]
        schedules: usize,
        /// For how long
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// From the start of the process to its first fire
    Start {
        /// How many schedules there are
        #[arg(long, default_value_t = 1_000_000)]
        schedules: usize,
    },
    /// The scheduler that is measured
    #[command(hide = true)]
    Serve,
}

impl Args {
    /// Whether this is the process that is measured.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.case, Case::Serve)
    }
}

/// Measures, and ends what it started whatever happened.
pub(super) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    if args.serves() {
        return serve().await;
    }
    let stage = Stage::set().await?;
    let mut report = Report::on(Machine::here(serde_json::Value::Null));
    let measured = measure(&args.case, &stage, &mut report).await;
    stage.strike().await;
    measured?;
    report.print(globals.json)?;
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        exit::FAILED.into()
    })
}

async fn measure(case: &Case, stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    match *case {
        Case::Burst { schedules, due } => cases::burst(stage, report, schedules, due).await,
        Case::Steady { rate, seconds } => cases::steady(stage, report, rate, seconds).await,
        Case::Idle { schedules, seconds } => cases::idle(stage, report, schedules, Duration::from_secs(seconds)).await,
        Case::Start { schedules } => cases::start(stage, report, schedules).await,
        Case::Serve => Ok(()),
    }
}

/// A scheduler as its own program runs it.
async fn serve() -> anyhow::Result<ExitCode> {
    let settings: scheduler::Config = config::load(None, config::environment())?;
    let lifecycle = Lifecycle::new();
    lifecycle.stop_on_signals()?;
    let health = Health::new(settings.health.stall_max);
    scheduler::run(settings, Clock::system(), lifecycle, health).await?;
    Ok(ExitCode::SUCCESS)
}
