//! Where a turn's programs run: a sandbox, with the workspace of its conversation or agent in it.
//!
//! It is the sandbox that was kept since the turn before, when its workspace is still the present version, or a fresh one
//! into which the workspace is restored. When the turn ends its processes are killed, the workspace is saved if it changed,
//! and the sandbox is kept for the next turn, which is then offered to this worker first.

use std::time::Duration;

use common::ids::{ConversationId, TenantId, WorkerId};
use common::job::decision::Outcome;
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};
use common::queue::Queue;
use common::workspace::Owner;
use tokio::sync::watch;

use super::exec::{Broken, slot};
use super::keeper::{Keeper, sandbox_failure};
use super::workspace::Workspace;
use super::{Context, Ended};
use crate::claude::{Process, Recipe};
use crate::consumer::held::{Orders, Stop};
use crate::environment::Environment;
use crate::events::Say;
use crate::pool::{KeptFor, Pool, Slot, Who};
use crate::sandbox::Sandbox;

/// How long saving may take, and how long when the worker stops.
const SAVE_MAX: Duration = Duration::from_mins(2);
const SAVE_MAX_DRAINING: Duration = Duration::from_secs(8);

/// How long a turn's end waits for Redis to hear that its sandbox is kept.
const SAY_MAX: Duration = Duration::from_millis(250);

/// A sandbox with a workspace in it, or without one where none is kept.
#[derive(Debug)]
pub(super) struct Home {
    slot: Slot,
    workspace: Option<Workspace>,
    owner: Option<KeptFor>,
    orders: watch::Receiver<Orders>,
    keeper: Option<Keeping>,
    /// Whether a process stays in it, which rests.
    has_resident: bool,
}

/// Which worker keeps a conversation's sandbox.
#[derive(Debug)]
struct Keeping {
    queue: Queue,
    tenant_id: TenantId,
    conversation_id: ConversationId,
    worker_id: WorkerId,
}

impl Keeping {
    fn new(context: &Context) -> Option<Self> {
        Some(Self {
            queue: context.machine.queue.clone(),
            tenant_id: context.job.tenant_id,
            conversation_id: context.job.conversation_id?,
            worker_id: context.worker_id,
        })
    }

    /// Says it. Where nobody hears it, the next turn runs where a slot is free.
    async fn say(&self, keep: Duration) {
        let said = self
            .queue
            .say_kept(self.tenant_id, self.conversation_id, self.worker_id, keep);
        match tokio::time::timeout(SAY_MAX, said).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "Redis does not hear whose sandbox is kept here"),
            Err(_elapsed) => tracing::debug!("Redis does not hear in time whose sandbox is kept here"),
        }
    }
}

impl Home {
    /// Takes a sandbox, with Claude Code in it where one is started as `spare` says, and restores the workspace of `owner` in
    /// it. From then on it must be kept alive by `keeper`.
    pub(super) async fn enter(
        context: &Context,
        keeper: &mut Keeper,
        (environment, spare): (&Environment, Option<&Recipe>),
        owner: Option<Owner>,
    ) -> Result<Self, Broken> {
        let Some(pool) = &context.machine.pool else {
            return Err(Failure::new(FailureCode::SandboxFailed, "this worker has no sandboxes").into());
        };
        let workspace = match owner {
            Some(owner) => Workspace::find(context, owner, environment.profile.workspace_bytes).await?,
            None => None,
        };
        let owner = workspace.as_ref().map(|workspace| KeptFor {
            tenant_id: context.job.tenant_id,
            who: Who::Workspace(workspace.owner()),
        });
        let version = workspace.as_ref().map_or(0, Workspace::version);
        let (slot, is_kept) = if let Some(slot) = kept(pool, &environment.name, owner.as_ref(), version).await {
            (slot, true)
        } else {
            let wanted = (environment.name.as_str(), spare);
            (slot::check_out(context, keeper, pool, wanted).await?, false)
        };
        let home = Self {
            slot,
            workspace,
            owner,
            orders: context.orders.clone(),
            keeper: Keeping::new(context),
            has_resident: false,
        };
        match home.furnish(keeper, is_kept).await {
            Ok(()) => Ok(home),
            Err(broken) => {
                home.slot.retire();
                Err(broken)
            }
        }
    }

    async fn furnish(&self, keeper: &mut Keeper, is_kept: bool) -> Result<(), Broken> {
        let sandbox = self.slot.sandbox();
        keeper.begin(sandbox).await?;
        match &self.workspace {
            Some(workspace) if !is_kept => {
                let restored = keeper.keep(sandbox, workspace.restore(sandbox)).await;
                Ok(restored.map_err(Broken::Stopped)??)
            }
            _ => Ok(()),
        }
    }

    /// The sandbox.
    pub(super) fn sandbox(&self) -> &Sandbox {
        self.slot.sandbox()
    }

    /// Takes the process that was started in it, or stayed in it, before. Who does not want it says so by dropping it, and
    /// then nothing is left of it.
    pub(super) fn take_resident(&mut self) -> Option<Process> {
        self.slot.take_resident()
    }

    /// Whether a process may stay in it for the next turn: the sandbox is kept then.
    pub(super) fn may_keep(&self) -> bool {
        self.owner.is_some() && self.sandbox().about().can_rest
    }

    /// Leaves a process in it, which rests.
    pub(super) fn put_resident(&mut self, resident: Process) {
        self.has_resident = true;
        self.slot.put_resident(resident);
    }

    /// Gives the sandbox up, with whatever is in it.
    pub(super) fn give_up(self) {
        self.slot.retire();
    }

    /// Ends what runs in it, saves the workspace, and keeps the sandbox. An attempt that was lost saves nothing.
    ///
    /// # Errors
    /// When the workspace was not saved: its version is that of before.
    pub(super) async fn leave(self) -> Result<(), Failure> {
        let Self {
            mut slot,
            workspace,
            owner,
            orders,
            keeper,
            has_resident,
        } = self;
        if !has_resident {
            // One that nobody wanted.
            drop(slot.take_resident());
        }
        let is_lost = orders.borrow().stop == Some(Stop::Lost);
        let (Some(mut workspace), Some(owner), false) = (workspace, owner, is_lost) else {
            slot.retire();
            return Ok(());
        };
        let is_draining = orders.borrow().stop == Some(Stop::Drain);
        let limit = if is_draining { SAVE_MAX_DRAINING } else { SAVE_MAX };
        let sandbox = slot.sandbox();
        let work = async {
            // Processes end at once, whatever saving takes. Beside one that rests there is none.
            if !has_resident {
                sandbox.kill_all().await.map_err(|error| sandbox_failure(&error))?;
            }
            workspace.save(sandbox).await
        };
        let late = Failure::new(
            FailureCode::WorkspaceFailed,
            "its workspace could not be saved: it took too long",
        );
        let limited = async { tokio::time::timeout(limit, work).await.unwrap_or(Err(late)) };
        match Box::pin(Keeper::new(orders).finish(sandbox, limited)).await {
            Some(Ok(version)) => {
                let keep = slot.keep(owner, version).await;
                if let (Some(keep), Some(keeper), false) = (keep, keeper, is_draining) {
                    keeper.say(keep).await;
                }
                Ok(())
            }
            Some(Err(failure)) => {
                slot.retire();
                Err(failure)
            }
            None => {
                slot.retire();
                Ok(())
            }
        }
    }
}

/// The sandbox that was kept for this owner, when the workspace in it is the present version.
async fn kept(pool: &Pool, environment: &str, owner: Option<&KeptFor>, version: u64) -> Option<Slot> {
    let (slot, kept) = pool.check_out_kept(environment, owner?).await?;
    if kept == version {
        return Some(slot);
    }
    slot.retire();
    None
}

/// How a turn ended, now that its files are saved or not. One that did well but whose files were not kept did not do well;
/// one that ended otherwise says so in its log. Nothing is committed yet, so a request to cancel that came meanwhile counts;
/// what was said stays.
pub(super) fn settled(ended: Ended, left: Result<(), Failure>, context: &Context) -> Ended {
    if let Err(failure) = &left {
        context.events.say(EventBody::Status {
            phase: "workspace_not_saved".to_owned(),
            detail: Some(failure.message.clone()),
        });
    }
    let is_cancelled = context.orders.borrow().stop == Some(Stop::Cancel);
    let outcome = match (left, ended.outcome) {
        (_, _) if is_cancelled => Outcome::Cancelled,
        (Err(failure), Outcome::Succeeded) => Outcome::Failed {
            failure,
            retry_after: None,
        },
        (_, outcome) => outcome,
    };
    Ended { outcome, ..ended }
}
