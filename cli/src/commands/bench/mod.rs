//! `hothouse bench`: what this installation does, measured over HTTP as its users meet it.
//!
//! Every measurement uses a queue of its own, checks that what it counted is true (each accepted job is there, each
//! ended exactly once) and cleans up. A measurement whose check fails is not a result: the exit code is 1.

mod alone;
mod claude;
mod engine;
mod fairness;
mod latency;
mod load;
mod machine;
mod modes;
mod pickup;
mod queue;
mod quiet;
mod rates;
mod report;
mod sandbox;
mod scheduler;
mod submit;
mod throughput;
mod turns;
mod wire;
mod workspace;

use std::process::ExitCode;

use clap::Subcommand;

use self::queue::BenchQueue;
use self::report::Report;
use crate::client::Client;
use crate::globals::Globals;
use crate::interrupt::Interrupts;
use crate::{exit, output};

/// Options of `hothouse bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// The queue by itself, one mode a measurement, and beside other queues
    Queue(modes::Args),
    /// Single submissions into a paused queue: how many are accepted a second, and how long each takes
    Submit(submit::Args),
    /// Jobs through the whole path at full speed: how many end a second, and does each end once
    Throughput(throughput::Args),
    /// One job at a time on an idle system: from the call to its start on a worker
    Pickup(pickup::Args),
    /// Single jobs of tenants that have nothing else, while others have a backlog: how long each waits
    Fairness(fairness::Args),
    /// One program at a time in a warm sandbox, beside `docker run` of the same image
    Sandbox(sandbox::Args),
    /// Turns of conversations: what is between the provider and a person, and what turns at once cost
    Turns(turns::Args),
    /// Turns of Claude Code: from the claim to the first request at the model, by how its process came to be
    Claude(claude::Args),
    /// Schedules at scale, on a private Postgres and Redis
    Scheduler(scheduler::Args),
}

impl Args {
    /// Whether this is a server too, and not only the client that measures.
    pub(crate) fn serves(&self) -> bool {
        match &self.measurement {
            Measurement::Scheduler(args) => args.serves(),
            // It is the model's provider too.
            Measurement::Turns(_) | Measurement::Claude(_) => true,
            _ => false,
        }
    }
}

/// Measures, cleans up whatever happened, and prints the report.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    if let Measurement::Scheduler(args) = args.measurement {
        return scheduler::run(args, globals).await;
    }
    let client = Client::new(globals)?;
    let mut interrupts = Interrupts::new()?;
    let mut report = Report::new(&client).await?;
    let queue = BenchQueue::new(&client, args.measurement.name());
    let measured = tokio::select! {
        measured = args.measurement.run(&client, &queue, &mut report) => measured,
        () = interrupts.next() => Err(anyhow::anyhow!("interrupted: nothing was measured")),
    };
    let cleaned = tokio::select! {
        cleaned = queue.clean_up() => cleaned,
        () = interrupts.next() => Err(anyhow::anyhow!("left without cleaning up: the queue is {}", queue.name)),
    };
    measured?;
    report.print(globals.json)?;
    if let Err(error) = &cleaned {
        output::note(format_args!("cleaning up: {error:#}"));
    }
    Ok(if report.is_sound() && cleaned.is_ok() {
        ExitCode::SUCCESS
    } else {
        exit::FAILED.into()
    })
}

impl Measurement {
    fn name(&self) -> &'static str {
        match self {
            Self::Queue(_) => "queue",
            Self::Submit(_) => "submit",
            Self::Throughput(_) => "throughput",
            Self::Pickup(_) => "pickup",
            Self::Fairness(_) => "fairness",
            Self::Sandbox(_) => "sandbox",
            Self::Turns(_) => "turns",
            Self::Claude(_) => "claude",
            Self::Scheduler(_) => "scheduler",
        }
    }

    async fn run(&self, client: &Client, queue: &BenchQueue<'_>, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Self::Queue(args) => modes::run(args, client, queue, report).await,
            Self::Submit(args) => submit::run(args, client, queue, report).await,
            Self::Throughput(args) => throughput::run(args, client, queue, report).await,
            Self::Pickup(args) => pickup::run(args, client, queue, report).await,
            Self::Fairness(args) => fairness::run(args, client, queue, report).await,
            Self::Sandbox(args) => sandbox::run(args, client, queue, report).await,
            Self::Turns(args) => turns::run(args, client, queue, report).await,
            Self::Claude(args) => claude::run(args, client, queue, report).await,
            // It needs no server, so it has been run before one was asked for.
            Self::Scheduler(_) => Ok(()),
        }
    }
}
