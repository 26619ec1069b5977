//! Agents that are programs: `command`, any program that reads a prompt and prints an answer, and `claude_code`.
//!
//! The program runs in its environment's sandbox as an `exec` job's does, with the agent's way out. What it prints
//! becomes the turn's events and messages; how it ends is how the attempt ends. It reaches the agent's models through the
//! gateway. docs/harnesses.md is its manual.
//!
//! # Invariants
//! - Whatever a program prints, the turn's messages are valid: a call has one result, a result has its call, and all of
//!   it together is bounded.
//! - A turn that is stopped keeps what was said before; its processes are dead before the attempt settles.

mod claude;
mod command;
mod place;
mod protocol;
mod transcript;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::agent::{AgentDefinition, Harness};
use common::job::decision::Outcome;
use common::job::{Failure, FailureCode, Usage};
use common::message::{Message, Role};
use common::money::Usd;
use common::workspace::Owner;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::exec::Broken;
use super::keeper::Keeper;
use super::native::EventSink;
use super::way_out::WayOut;
use super::{Context, Ended, home, unread};
use crate::events::Say;
use crate::gateway::{Gateway, Terms};
use crate::model::{self, Attachment, ModelName};
use crate::sandbox::Exit;
use place::Place;
use transcript::Transcript;

/// What a program is to answer, and on what it works.
pub(super) struct Task {
    /// The conversation; its last message is to be answered.
    pub(super) history: Vec<Message>,
    /// Whose files it works on.
    pub(super) owner: Option<Owner>,
    /// A tar stream of files that are put beside them.
    pub(super) given: Option<Vec<u8>>,
    /// Images among the files that messages name, by their path.
    pub(super) images: BTreeMap<String, Attachment>,
}

/// Takes one turn with the agent's program.
pub(super) async fn answer(context: Context, agent: AgentDefinition, task: Task) -> Ended {
    let begun = Instant::now();
    let events = context.events.clone();
    let sink = EventSink::new(move |body| events.say(body));
    let gateway = match Box::pin(terms(&context, &agent)).await {
        Ok(terms) => Gateway::new(terms, Arc::new(sink.clone())),
        Err(ended) => return ended,
    };
    let mut transcript = Transcript::new(&sink, &context.clock, context.job.id);
    let doors = Doors {
        way_out: WayOut::new(&context),
        gateway,
    };
    let mut keeper = Keeper::new(context.orders.clone());
    let (done, left) = match Box::pin(Place::take(&context, &mut keeper, &doors, (&agent, &task))).await {
        Ok(place) => {
            let done = Box::pin(attempt(&place, &mut keeper, (&agent, &task), &mut transcript)).await;
            (done, place.leave().await)
        }
        Err(broken) => (Err(broken), Ok(())),
    };
    let Doors { way_out, gateway } = doors;
    way_out.end().await;
    let used = gateway.usage();
    let spent = gateway.spent().await;
    let mut ended = match done {
        Ok(done) => finished(done.or_over_budget(&gateway), transcript),
        Err(Broken::Stopped(stopped)) => Ended {
            messages: transcript.finish(Some("cancelled")).0,
            ..stopped.ended()
        },
        Err(Broken::Failed(failure)) => Ended {
            messages: transcript.finish(None).0,
            ..Ended::failed(failure)
        },
        Err(Broken::GivenBack) => Ended::given_back(),
    };
    ended.usage.input_tokens = used.input_tokens;
    ended.usage.output_tokens = used.output_tokens;
    ended.usage.cached_input_tokens = used.cached_input_tokens;
    if spent.cost != Usd::ZERO {
        ended.usage.cost_usd = spent.cost.to_string();
    }
    ended.usage.sandbox_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    home::settled(ended, left, &context)
}

/// How a program reaches what is outside.
struct Doors {
    way_out: WayOut,
    gateway: Gateway,
}

/// What the agent's program may ask models for.
async fn terms(context: &Context, agent: &AgentDefinition) -> Result<Terms, Ended> {
    let models: Result<Vec<ModelName>, _> = agent.models.iter().map(|name| name.parse()).collect();
    let refused = |error: model::Error| Ended::failed(Failure::new(FailureCode::InvalidInput, error.to_string()));
    let caller = context.machine.caller(&context.job, agent, &context.clock).await;
    Ok(Terms {
        shrinks: agent.harness == Harness::ClaudeCode,
        models: models.map_err(refused)?,
        features: agent.provider_features.clone(),
        room: context.machine.room.clone(),
        caller: caller.map_err(|error| match &error {
            model::Error::Books(error) => unread(error, context, "what may be spent could not be read"),
            error => Ended::failed(error.failure()),
        })?,
    })
}

/// What a program used, and how it ended when it did.
#[derive(Debug, Default)]
struct Used {
    exit_code: Option<i32>,
    signal: Option<i32>,
    wall: Duration,
    cpu: Duration,
    memory_peak_bytes: u64,
}

impl From<&Exit> for Used {
    fn from(exit: &Exit) -> Self {
        Self {
            exit_code: exit.code,
            signal: exit.signal,
            wall: exit.wall,
            cpu: exit.cpu,
            memory_peak_bytes: exit.memory_peak_bytes,
        }
    }
}

/// How a turn of a program ended.
#[derive(Debug)]
struct Done {
    used: Used,
    /// What that means for the turn; none when it did well.
    failure: Option<Failure>,
    /// Calls of a model, as the program counts them; 0 when it does not.
    steps: u64,
}

impl Done {
    /// A program that ends badly after a call of its did not fit into a budget ends for that.
    fn or_over_budget(mut self, gateway: &Gateway) -> Self {
        let is_replaced = |failure: &Failure| failure.code != FailureCode::Timeout;
        if self.failure.as_ref().is_some_and(is_replaced) {
            self.failure = gateway.over_budget().or(self.failure);
        }
        self
    }
}

async fn attempt(
    place: &Place<'_>,
    keeper: &mut Keeper,
    (agent, task): (&AgentDefinition, &Task),
    transcript: &mut Transcript<'_>,
) -> Result<Done, Broken> {
    let stop = CancellationToken::new();
    let work = async {
        if agent.harness == Harness::ClaudeCode {
            return claude::run(place, (agent, task), transcript, &stop).await;
        }
        place.put_turn(agent, &task.history, None).await?;
        command::run(place, agent, &prompt(&task.history), transcript).await
    };
    let doors = place.doors;
    let open = doors
        .way_out
        .serve_both(place.sandbox(), place.policy(agent), Some(&doors.gateway));
    let work = async {
        tokio::select! {
            done = work => done,
            never = open => match never {},
        }
    };
    tokio::pin!(work);
    match keeper.keep(place.sandbox(), &mut work).await {
        Ok(done) => done,
        Err(stopped) => {
            // It may say its last words, so that its own transcript ends well; then it is killed.
            if agent.harness == Harness::ClaudeCode && !stopped.is_lost() {
                stop.cancel();
                drop(tokio::time::timeout(claude::INTERRUPT_MAX, work).await);
            }
            Err(Broken::Stopped(stopped))
        }
    }
}

/// What the user said last.
fn prompt(history: &[Message]) -> String {
    let last = history.iter().rev().find(|message| message.role == Role::User);
    last.map(Message::text).unwrap_or_default()
}

fn finished(done: Done, transcript: Transcript<'_>) -> Ended {
    let Done { used, failure, steps } = done;
    let (messages, text) = transcript.finish(failure.as_ref().map(|failure| failure.message.as_str()));
    let duration_ms = u64::try_from(used.wall.as_millis()).unwrap_or(u64::MAX);
    let result = json!({"text": text, "steps": steps, "exit_code": used.exit_code, "signal": used.signal,
        "duration_ms": duration_ms});
    let outcome = failure.map_or(Outcome::Succeeded, |failure| Outcome::Failed {
        failure,
        retry_after: None,
    });
    Ended {
        result: serde_json::to_vec(&result).ok(),
        usage: Usage {
            cpu_ms: u64::try_from(used.cpu.as_millis()).unwrap_or(u64::MAX),
            memory_peak_bytes: used.memory_peak_bytes,
            ..Usage::default()
        },
        messages,
        ..Ended::with(outcome)
    }
}
