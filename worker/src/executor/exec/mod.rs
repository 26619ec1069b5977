//! `exec`: one program in one sandbox.

mod artifacts;
mod install;
pub(super) mod outcome;
mod output;
mod plan;
pub(super) mod slot;

use std::time::{Duration, Instant};

use common::job::event::EventBody;
use common::job::exec::ExecInput;
use common::job::{Failure, FailureCode, Usage};

use super::keeper::{Keeper, Stopped};
use super::way_out::WayOut;
use super::{Context, Ended};
use crate::egress::Policy;
use crate::environment::{self, Environment};
use crate::events::Say;
use crate::pool::Slot;
use crate::sandbox::{self, Exit, Input, PutFiles, RunSpec, Sandbox};
use output::Collected;
use plan::Plan;
pub(super) use plan::archive;

/// From the polite signal to the one that cannot be refused.
const GRACE: Duration = Duration::from_secs(1);

/// How an attempt came to its end before its program did.
pub(super) enum Broken {
    /// The attempt was told to stop.
    Stopped(Stopped),
    /// It cannot run.
    Failed(Failure),
    /// It cannot run now, through no fault of its own: it is queued again and nothing counts against it.
    GivenBack,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<sandbox::Error> for Broken {
    fn from(error: sandbox::Error) -> Self {
        Self::Failed(super::keeper::sandbox_failure(&error))
    }
}

/// Runs the job's program to its end.
pub(super) async fn run(context: Context) -> Ended {
    let begun = Instant::now();
    let mut keeper = Keeper::new(context.orders.clone());
    let way_out = WayOut::new(&context);
    let done = attempt(&context, &mut keeper, &way_out).await;
    way_out.end().await;
    match done {
        Ok(mut ended) => {
            ended.usage.sandbox_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            ended
        }
        Err(Broken::Failed(failure)) => Ended::failed(failure),
        Err(Broken::Stopped(stopped)) => stopped.ended(),
        Err(Broken::GivenBack) => Ended::given_back(),
    }
}

async fn attempt(context: &Context, keeper: &mut Keeper, way_out: &WayOut) -> Result<Ended, Broken> {
    let input: ExecInput = serde_json::from_slice(&context.input)
        .map_err(|error| Failure::new(FailureCode::InvalidInput, format!("the input cannot be read: {error}")))?;
    let name = input.environment.as_deref().unwrap_or(environment::DEFAULT);
    let Some(environment) = context.machine.environments.get(name) else {
        return Err(Failure::new(FailureCode::InvalidInput, format!("there is no environment {name:?}")).into());
    };
    if !input.artifacts.is_empty() && !context.machine.objects.is_configured() {
        let message = "this worker cannot keep artifacts: no object store is configured (objects.url)";
        return Err(Failure::new(FailureCode::InvalidInput, message).into());
    }
    let plan = plan::plan(&input, environment, &context.machine.egress)?;
    let Some(pool) = &context.machine.pool else {
        return Err(Failure::new(FailureCode::SandboxFailed, "this worker has no sandboxes").into());
    };
    let owner = slot::owner(context, environment);
    let reused = keeper.until_stopped(slot::reused(pool, name, owner.as_ref())).await;
    let slot = match reused.map_err(Broken::Stopped)? {
        Some(slot) => slot,
        None => slot::check_out(context, keeper, pool, (name, None)).await?,
    };
    let doors = Doors {
        way_out,
        environment,
        input: &input,
    };
    let ended = in_slot(context, keeper, &slot, doors, plan).await;
    match owner {
        // An attempt that was lost may have ended in the middle of anything.
        Some(owner) if ended.is_ok() => slot.recycle(owner),
        _ => slot.retire(),
    }
    ended
}

/// What a job may reach: while packages are installed, and after that.
#[derive(Clone, Copy)]
struct Doors<'a> {
    way_out: &'a WayOut,
    environment: &'a Environment,
    input: &'a ExecInput,
}

impl Doors<'_> {
    /// Installs packages; answers what is left of the job's time.
    async fn install(&self, context: &Context, sandbox: &Sandbox, plan: &mut Plan) -> Result<Duration, Broken> {
        let time = Duration::from_millis(context.job.timeout_ms);
        let steps = std::mem::take(&mut plan.install);
        if plan::needs_way_out(self.input, &steps) {
            self.way_out.put_certificates(sandbox).await?;
        }
        if steps.is_empty() {
            return Ok(time);
        }
        let deadline = Instant::now() + time;
        // The operator's list alone: naming a package names the registries that it comes from.
        let registries = &self.environment.install.allow;
        let policy = Policy::new(registries, registries);
        let installed = install::run(steps, &plan.env, sandbox, &context.events, deadline);
        self.way_out.during(sandbox, policy, installed).await?;
        Ok(deadline.saturating_duration_since(Instant::now()))
    }

    fn policy(&self) -> Policy {
        Policy::new(&self.environment.egress, &self.input.egress.allow)
    }
}

async fn in_slot(
    context: &Context,
    keeper: &mut Keeper,
    slot: &Slot,
    doors: Doors<'_>,
    mut plan: Plan,
) -> Result<Ended, Broken> {
    let (sandbox, input) = (slot.sandbox(), doors.input);
    let work = Box::pin(async {
        let time = doors.install(context, sandbox, &mut plan).await?;
        if !plan.archive.is_empty() {
            sandbox.put_files(plan.archive, PutFiles::default()).await?;
        }
        let stdin = input
            .stdin
            .as_ref()
            .map_or(Input::None, |text| Input::Bytes(text.clone().into()));
        let spec = RunSpec {
            env: plan.env,
            files: plan.texts,
            stdin,
            timeout: Some(time),
            grace: GRACE,
            ..RunSpec::new(plan.argv)
        };
        // Open before the program starts: its first connection must not come too early.
        let program = run_program(context, sandbox, spec);
        doors.way_out.during(sandbox, doors.policy(), program).await
    });
    let (exit, collected) = keeper.keep(sandbox, work).await.map_err(Broken::Stopped)??;
    let kept = if input.artifacts.is_empty() {
        // Each `keep` begins with a renewal of the lease, a message that most jobs need not wait for.
        Ok(Vec::new())
    } else {
        let kept = artifacts::keep(context, sandbox, &input.artifacts);
        keeper.keep(sandbox, kept).await.map_err(Broken::Stopped)?
    };
    if let Err(failure) = &kept {
        // Where the program failed too, its failure is the job's.
        context.events.say(EventBody::Status {
            phase: "artifacts_not_kept".to_owned(),
            detail: Some(failure.message.clone()),
        });
    }
    let usage = Usage {
        cpu_ms: u64::try_from(exit.cpu.as_millis()).unwrap_or(u64::MAX),
        memory_peak_bytes: exit.memory_peak_bytes,
        ..Usage::default()
    };
    Ok(outcome::ended(&exit, &collected, kept, usage, context.job.timeout_ms))
}

async fn run_program(context: &Context, sandbox: &Sandbox, spec: RunSpec) -> Result<(Exit, Collected), Broken> {
    let mut running = sandbox.run(spec).await?;
    context.events.say_running(running.began_ago());
    let mut collected = Collected::default();
    while let Some(output) = running.next().await {
        collected.take(output, &context.events);
    }
    collected.finish(&context.events);
    Ok((running.wait().await?, collected))
}
