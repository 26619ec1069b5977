//! `agent_run` and `chat_turn`: an agent's answer, by the harness that its definition names.

mod files;
mod journal;
mod place;
mod python;
mod tools;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::agent::{AgentDefinition, Harness, WorkspaceChoice};
use common::ids::{ApprovalId, MessageId};
use common::job::approval::NewApproval;
use common::job::decision::Outcome;
use common::job::exec::InputFile;
use common::job::{Failure, FailureCode, Usage, Wait};
use common::message::Message;
use common::money::Usd;
use common::store;
use common::workspace::Owner;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::keeper::Stopped;
use super::native::{self, EventSink, Limits, Question, Stop, Turn, TurnEnd};
use super::{Context, Ended, chat, home, program, unread};
use crate::consumer::held;
use crate::events::Say as _;
use crate::model::{self, Attachment, ModelName};
use files::{Given, images_of};
use journal::Kept;
use tools::SandboxTools;

/// A job does not come back sooner from waiting for a provider: that costs a commit and a claim.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// The input of an `agent_run`.
#[derive(Deserialize)]
struct RunInput {
    input: String,
    agent: AgentDefinition,
    /// Files that are put into its workspace.
    #[serde(default)]
    files: Vec<InputFile>,
    /// Whether it works in its agent's workspace.
    #[serde(default)]
    workspace: WorkspaceChoice,
}

/// The input of a `chat_turn`.
#[derive(Deserialize)]
struct TurnInput {
    message_id: MessageId,
    agent: AgentDefinition,
}

/// Takes one turn of a conversation.
pub(super) async fn turn(context: Context) -> Ended {
    let input: TurnInput = match serde_json::from_slice(&context.input) {
        Ok(input) => input,
        Err(error) => return unreadable(&error),
    };
    let Some(conversation_id) = context.job.conversation_id else {
        return Ended::failed(Failure::new(
            FailureCode::Internal,
            "the turn belongs to no conversation",
        ));
    };
    match context
        .machine
        .store
        .messages_until(conversation_id, input.message_id)
        .await
    {
        Ok(history) if history.is_empty() => Ended::failed(Failure::new(
            FailureCode::InvalidInput,
            "the message that it answers is gone",
        )),
        Ok(history) => {
            let owner = Owner::Conversation(conversation_id);
            Ended {
                answers: Some(input.message_id),
                ..Box::pin(answer(context, input.agent, Task::of(history, Some(owner)))).await
            }
        }
        Err(error) => unread(&error, &context, "the conversation could not be read"),
    }
}

/// Runs an agent once.
pub(super) async fn run(context: Context) -> Ended {
    match serde_json::from_slice::<RunInput>(&context.input) {
        Ok(input) => {
            let given = Given::new(&input.files);
            let mut asked = Message::user(input.input, context.clock.now());
            asked.parts.extend(given.parts());
            let history = vec![asked];
            let owner = match input.workspace {
                WorkspaceChoice::Agent => context.job.agent_id.map(Owner::Agent),
                WorkspaceChoice::None => None,
            };
            Box::pin(answer(context, input.agent, Task { history, owner, given })).await
        }
        Err(error) => unreadable(&error),
    }
}

fn unreadable(error: &serde_json::Error) -> Ended {
    Ended::failed(Failure::new(
        FailureCode::InvalidInput,
        format!("the input cannot be read: {error}"),
    ))
}

/// What an agent is to answer, and on what its programs work.
struct Task {
    history: Vec<Message>,
    /// Whose files its programs work on.
    owner: Option<Owner>,
    /// Files that are put beside them.
    given: Given,
}

impl Task {
    fn of(history: Vec<Message>, owner: Option<Owner>) -> Self {
        Self {
            history,
            owner,
            given: Given::default(),
        }
    }

    /// The same for a program; to a `command` nobody shows images.
    async fn of_program(self, context: &Context, harness: Harness) -> Result<program::Task, Failure> {
        let images = match harness {
            Harness::ClaudeCode => self.images(context).await,
            _ => BTreeMap::new(),
        };
        let given = self.given.archive().map_err(|error| {
            Failure::new(
                FailureCode::InvalidInput,
                format!("the files cannot be packed: {error}"),
            )
        })?;
        Ok(program::Task {
            history: self.history,
            owner: self.owner,
            given,
            images,
        })
    }

    /// The images that the model is shown.
    async fn images(&self, context: &Context) -> BTreeMap<String, Attachment> {
        let mut images = match self.owner {
            Some(owner) => images_of(context, owner, &self.history).await,
            None => BTreeMap::new(),
        };
        images.extend(self.given.images());
        images
    }
}

async fn answer(context: Context, agent: AgentDefinition, task: Task) -> Ended {
    if matches!(agent.harness, Harness::Command | Harness::ClaudeCode) {
        return match task.of_program(&context, agent.harness).await {
            Ok(task) => Box::pin(program::answer(context, agent, task)).await,
            Err(failure) => Ended::failed(failure),
        };
    }
    let context = Arc::new(context);
    let journal = Kept::new(&context);
    let (turn, tools) = match prepare(&context, &agent, task, &journal).await {
        Ok(prepared) => prepared,
        Err(ended) => return ended,
    };
    let cancel = CancellationToken::new();
    let caller = match Box::pin(context.machine.caller(&context.job, &agent, &context.clock)).await {
        Ok(caller) => caller,
        Err(model::Error::Books(error)) => return unread(&error, &context, "what may be spent could not be read"),
        Err(error) => return Ended::failed(error.failure()),
    };
    let events = context.events.clone();
    let sink = EventSink::new(move |body| events.say(body));
    let surroundings = native::Context {
        caller: &caller,
        clock: &context.clock,
        sink: &sink,
        journal: &journal,
        cancel: &cancel,
    };
    let work = async {
        match agent.harness {
            Harness::Chat => Some(chat::run(turn, surroundings).await),
            Harness::Native => Some(native::run(turn, surroundings, &tools).await),
            Harness::ClaudeCode | Harness::Command => None,
        }
    };
    let (end, stopped) = until(work, &context, &cancel).await;
    let left = Box::pin(tools.end()).await;
    let spent = caller.ledger.end().await;
    match (end, stopped) {
        (None, _) => {
            let message = "this version does not run agents of the harness claude_code";
            Ended::failed(Failure::new(FailureCode::InvalidInput, message))
        }
        (Some(end), stopped) => {
            let ended = ended(end, stopped.as_ref(), &context, spent.cost);
            home::settled(ended, left, &context)
        }
    }
}

/// The turn, with what attempts before have done of it, and its tools.
async fn prepare(
    context: &Arc<Context>,
    agent: &AgentDefinition,
    task: Task,
    journal: &Kept,
) -> Result<(Turn, SandboxTools), Ended> {
    let refused = |_unnamed| {
        Ended::failed(Failure::new(
            FailureCode::InvalidInput,
            "a model is not named provider/model",
        ))
    };
    let models: Result<Vec<ModelName>, _> = agent.models.iter().map(|name| name.parse()).collect();
    let models = models.map_err(refused)?;
    let attachments = task.images(context).await;
    let Task { history, owner, given } = task;
    let resume = journal.resume(has_files(context, owner)).await;
    let resume =
        resume.map_err(|error| unread(&error, context, "what an earlier attempt has done could not be read"))?;
    // Those that an attempt before has worked on are in the workspace.
    let was_given = has_files(context, owner) && resume.steps.iter().any(|step| !step.ran_by.is_empty());
    let given = if was_given { Given::default() } else { given };
    let tools = SandboxTools::new(context, agent, owner, &given).map_err(Ended::failed)?;
    let turn = Turn {
        system: agent.instructions.clone(),
        history,
        models,
        job_id: Some(context.job.id),
        temperature: None,
        limits: limits(agent),
        asks: agent.asks(),
        attachments,
        resume,
    };
    Ok((turn, tools))
}

fn limits(agent: &AgentDefinition) -> Limits {
    let usual = Limits::default();
    Limits {
        max_steps: agent.max_steps,
        max_output_tokens: agent.max_answer_tokens.unwrap_or(usual.max_output_tokens),
        ..usual
    }
}

/// Whether the files of `owner` are there for the next attempt.
fn has_files(context: &Context, owner: Option<Owner>) -> bool {
    owner.is_some() && context.machine.workspaces.is_configured()
}

/// Why a turn was cut short.
enum Cut {
    Stopped(Stopped),
    Timeout,
}

/// Runs `work`; an order to stop, or the end of the time, cancels it and waits for what it makes of that.
async fn until<T>(work: impl Future<Output = T>, context: &Context, cancel: &CancellationToken) -> (T, Option<Cut>) {
    let mut orders = context.orders.clone();
    tokio::pin!(work);
    let cut = tokio::select! {
        end = &mut work => return (end, None),
        stop = held::stopped(&mut orders) => Cut::Stopped(Stopped(stop)),
        () = tokio::time::sleep(Duration::from_millis(context.job.timeout_ms)) => Cut::Timeout,
    };
    cancel.cancel();
    (work.await, Some(cut))
}

fn ended(end: TurnEnd, cut: Option<&Cut>, context: &Context, cost: Usd) -> Ended {
    let usage = Usage {
        input_tokens: end.usage.input_tokens,
        output_tokens: end.usage.output_tokens,
        cached_input_tokens: end.usage.cached_input_tokens,
        cost_usd: if cost == Usd::ZERO {
            String::new()
        } else {
            cost.to_string()
        },
        ..Usage::default()
    };
    let failed = |failure: Failure| Outcome::Failed {
        failure,
        retry_after: end.stop.retry_after(),
    };
    let mut approvals = Vec::new();
    let outcome = match (cut, &end.stop) {
        (Some(Cut::Stopped(stopped)), Stop::Cancelled) => stopped.ended().outcome,
        (Some(Cut::Timeout), Stop::Cancelled) => failed(Failure::new(
            FailureCode::Timeout,
            format!("it took longer than {} ms", context.job.timeout_ms),
        )),
        (_, Stop::Asks(questions)) => {
            let now = context.clock.now();
            let until = questions.iter().map(|question| deadline(question, now)).min();
            approvals = questions
                .iter()
                .filter(|question| question.asked_until.is_none())
                .map(|question| asked(question, now))
                .collect();
            Outcome::Waits(Wait::answer().until(until.unwrap_or(now)))
        }
        // A call that was not made, because Postgres did not say whether it may be: the turn goes on there.
        (_, Stop::Model(model::Error::Books(error))) if error.class() == store::Class::Transient => {
            Outcome::Interrupted
        }
        (_, stop) => match (stop.wait(), stop.failure()) {
            // Others' limits are nobody's failure: the job comes back when its time has come.
            (Some(wait), Some(_)) => Outcome::Waits(Wait::provider(context.clock.now() + wait.max(WAIT_MIN))),
            (_, failure) => failure.map_or(Outcome::Succeeded, failed),
        },
    };
    let stop_reason = match &end.stop {
        Stop::Answered(reason) => Some(reason),
        _ => None,
    };
    let result = json!({"text": end.text, "steps": end.steps, "stop_reason": stop_reason});
    let result = serde_json::to_vec(&result).expect("strings and numbers are JSON");
    Ended {
        result: Some(result),
        usage,
        messages: end.messages,
        approvals,
        ..Ended::with(outcome)
    }
}

fn deadline(question: &Question, now: DateTime<Utc>) -> DateTime<Utc> {
    question.asked_until.unwrap_or(now + question.patience)
}

fn asked(question: &Question, now: DateTime<Utc>) -> NewApproval {
    NewApproval {
        id: ApprovalId::new(),
        call: (question.step, question.place, question.parent),
        tool_call_id: question.call.id.clone(),
        tool: question.call.name.clone(),
        input: question.call.input.clone(),
        created_at: now,
        deadline: deadline(question, now),
    }
}
