//! What an attempt does, by the kind of its job.

mod agent;
pub mod chat;
mod exec;
mod group;
mod home;
mod keeper;
pub mod native;
mod noop;
mod program;
mod text;
mod way_out;
mod workspace;

use std::sync::Arc;

use common::agent::AgentDefinition;
use common::cancel::Canceller;
use common::clock::Clock;
use common::ids::{MessageId, WorkerId};
use common::job::approval::NewApproval;
use common::job::decision::Outcome;
use common::job::{Failure, FailureCode, Job, Kind, NewJob, Usage, Wait};
use common::message::Message;
use common::objects::Objects;
use common::queue::Queue;
use common::store::{self, Store};
use common::workspace::Workspaces;
use tokio::sync::watch;

use crate::claude;
use crate::consumer::held::Orders;
use crate::environment::Environments;
use crate::events::Sink;
use crate::gateway::Room;
use crate::model::books::Books;
use crate::model::{self, Caller, Policy, Providers};
use crate::pool::Pool;
pub use way_out::Means;

/// What executors need of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machine {
    /// For what an attempt reads beyond its input: a conversation's messages, what became of its children.
    pub store: Store,
    /// For saying whose sandbox is kept here.
    pub queue: Queue,
    /// For asking children to stop.
    pub canceller: Canceller,
    /// Warm sandboxes; none on a worker with light slots only.
    pub pool: Option<Pool>,
    /// What a sandbox holds.
    pub environments: Arc<Environments>,
    /// Where artifacts go.
    pub objects: Objects,
    /// Where the files of conversations and agents go.
    pub workspaces: Workspaces,
    /// Who answers models' names.
    pub providers: Arc<Providers>,
    /// The way out of sandboxes.
    pub egress: Arc<Means>,
    /// What all calls of models share.
    pub policy: Policy,
    /// Prices and budgets.
    pub books: Books,
    /// Where the requests of programs are held.
    pub room: Room,
    /// How long Claude Code may be silent.
    pub claude_code: claude::Settings,
}

impl Machine {
    /// With what an attempt calls models: its tenant's providers, and books of its own.
    ///
    /// # Errors
    /// When Postgres does not say what may be spent.
    pub async fn caller(&self, job: &Job, agent: &AgentDefinition, clock: &Clock) -> Result<Caller, model::Error> {
        Ok(Caller {
            providers: self.providers.for_tenant(job.tenant_id),
            policy: self.policy.clone(),
            ledger: self.books.ledger(job, &agent.budget, clock).await?,
        })
    }

    /// Ends every sandbox.
    pub async fn shutdown(&self) {
        if let Some(pool) = &self.pool {
            pool.shutdown().await;
        }
    }
}

/// One attempt's surroundings.
#[derive(Debug)]
pub struct Context {
    /// The job, running.
    pub job: Job,
    /// JSON of its input.
    pub input: Vec<u8>,
    /// Who runs it.
    pub worker_id: WorkerId,
    /// Where it says what happens.
    pub events: Sink,
    /// What it is told: run on until, stop.
    pub orders: watch::Receiver<Orders>,
    /// When things happen.
    pub clock: Clock,
    /// What it runs on.
    pub machine: Machine,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// JSON of the result, when there is one.
    pub result: Option<Vec<u8>>,
    /// What this attempt used.
    pub usage: Usage,
    /// What a turn adds to its conversation.
    pub messages: Vec<Message>,
    /// Jobs that are submitted when it waits.
    pub children: Vec<NewJob>,
    /// The message of its conversation that a turn answers.
    pub answers: Option<MessageId>,
    /// What people are asked when it waits for their answer.
    pub approvals: Vec<NewApproval>,
}

impl Ended {
    /// In this way, with nothing besides.
    pub fn with(outcome: Outcome) -> Self {
        Self {
            outcome,
            result: None,
            usage: Usage::default(),
            messages: Vec::new(),
            children: Vec::new(),
            answers: None,
            approvals: Vec::new(),
        }
    }

    /// Well, with a result.
    pub fn succeeded(result: Vec<u8>) -> Self {
        Self {
            result: Some(result),
            ..Self::with(Outcome::Succeeded)
        }
    }

    /// Not at all: the job is queued again, and nothing counts against it.
    pub fn given_back() -> Self {
        Self::with(Outcome::Interrupted)
    }

    /// Not yet: it gives up its worker, submits `children` in the same transaction, and goes on in another attempt when
    /// what it waits for has ended. [`Job::waits_for`] then says that it has waited, [`Job::woken_by`] what woke it, and
    /// [`Store::children`] what became of its children.
    pub fn waits(wait: Wait, children: Vec<NewJob>) -> Self {
        Self {
            children,
            ..Self::with(Outcome::Waits(wait))
        }
    }

    /// Badly, without a result.
    pub fn failed(failure: Failure) -> Self {
        Self::with(Outcome::Failed {
            failure,
            retry_after: None,
        })
    }
}

/// An attempt that cannot begin. While Postgres is away, or has no connection to spare, that is not the job's fault: it is
/// given back.
fn unread(error: &store::Error, context: &Context, message: &str) -> Ended {
    tracing::warn!(%error, job_id = %context.job.id, "{message}");
    match error.class() {
        store::Class::Transient => Ended::given_back(),
        _ => Ended::failed(Failure::new(FailureCode::Internal, message)),
    }
}

/// Runs the attempt to its end.
pub async fn execute(context: Context) -> Ended {
    match context.job.kind {
        Kind::Noop => noop::run(context).await,
        Kind::Exec => Box::pin(exec::run(context)).await,
        Kind::AgentRun => Box::pin(agent::run(context)).await,
        Kind::ChatTurn => Box::pin(agent::turn(context)).await,
        Kind::Group => Box::pin(group::run(context)).await,
    }
}
