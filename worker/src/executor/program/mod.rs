//! Agents that are programs: `command`, any program that reads a prompt and prints an answer.
//!
//! The program runs in its environment's sandbox as an `exec` job's does, with the agent's way out. What it prints
//! becomes the turn's events and messages; how it ends is how the attempt ends. It reaches the agent's models through the
//! gateway. docs/harnesses.md is its manual.
//!
//! # Invariants
//! - Whatever a program prints, the turn's messages are valid: a call has one result, a result has its call, and all of
//!   it together is bounded.
//! - A turn that is stopped keeps what was said before; its processes are dead before the attempt settles.

mod command;
mod lines;
mod place;
mod protocol;
mod transcript;

use std::sync::Arc;
use std::time::Instant;

use common::agent::AgentDefinition;
use common::job::decision::Outcome;
use common::job::{Failure, FailureCode, Usage};
use common::message::{Message, Role};
use common::money::Usd;
use common::workspace::Owner;
use serde_json::json;

use super::exec::{Broken, outcome};
use super::keeper::Keeper;
use super::native::EventSink;
use super::way_out::WayOut;
use super::{Context, Ended, home};
use crate::events::Say;
use crate::gateway::{Gateway, Terms};
use crate::model::ModelName;
use crate::sandbox::Exit;
use place::Place;
use transcript::Transcript;

/// Answers the last message of `history` with the agent's program, which works on the files of `owner`.
pub(super) async fn answer(
    context: Context,
    agent: AgentDefinition,
    history: Vec<Message>,
    owner: Option<Owner>,
) -> Ended {
    let begun = Instant::now();
    let events = context.events.clone();
    let sink = EventSink::new(move |body| events.say(body));
    let gateway = match Box::pin(terms(&context, &agent)).await {
        Ok(terms) => Gateway::new(terms, Arc::new(sink.clone())),
        Err(failure) => return Ended::failed(failure),
    };
    let mut transcript = Transcript::new(&sink, &context.clock, context.job.id);
    let doors = Doors {
        way_out: WayOut::new(&context),
        gateway,
    };
    let mut keeper = Keeper::new(context.orders.clone());
    let (done, left) = match Place::take(&context, &mut keeper, &doors, &agent, owner).await {
        Ok(place) => {
            let done = attempt(&place, &mut keeper, (&agent, &history), &mut transcript).await;
            (done, place.leave().await)
        }
        Err(broken) => (Err(broken), Ok(())),
    };
    let Doors { way_out, gateway } = doors;
    way_out.end().await;
    let used = gateway.usage();
    let spent = gateway.spent().await;
    let mut ended = match done {
        Ok(done) => finished(done, transcript, context.job.timeout_ms),
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
    home::unless_unsaved(ended, left, &context.events)
}

/// How a program reaches what is outside.
struct Doors {
    way_out: WayOut,
    gateway: Gateway,
}

/// What the agent's program may ask models for.
async fn terms(context: &Context, agent: &AgentDefinition) -> Result<Terms, Failure> {
    let models: Result<Vec<ModelName>, _> = agent.models.iter().map(|name| name.parse()).collect();
    let refused = |error: crate::model::Error| Failure::new(FailureCode::InvalidInput, error.to_string());
    Ok(Terms {
        models: models.map_err(refused)?,
        features: agent.provider_features.clone(),
        caller: context
            .machine
            .caller(&context.job, agent, &context.clock)
            .await
            .map_err(|error| error.failure())?,
    })
}

/// How a program ended, and what it said of that itself.
struct Done {
    exit: Exit,
    complaint: Option<String>,
}

async fn attempt(
    place: &Place<'_>,
    keeper: &mut Keeper,
    (agent, history): (&AgentDefinition, &[Message]),
    transcript: &mut Transcript<'_>,
) -> Result<Done, Broken> {
    let work = async {
        place.put_turn(agent, history).await?;
        command::run(place, agent, &prompt(history), transcript).await
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
    keeper.keep(place.sandbox(), work).await.map_err(Broken::Stopped)?
}

/// What the user said last.
fn prompt(history: &[Message]) -> String {
    let last = history.iter().rev().find(|message| message.role == Role::User);
    last.map(Message::text).unwrap_or_default()
}

fn finished(done: Done, transcript: Transcript<'_>, timeout_ms: u64) -> Ended {
    let Done { exit, complaint } = done;
    let failure = outcome::failure(&exit, timeout_ms).map(|failure| match complaint {
        Some(complaint) => Failure::new(failure.code, format!("{}: {complaint}", failure.message)),
        None => failure,
    });
    let (messages, text) = transcript.finish(failure.as_ref().map(|failure| failure.message.as_str()));
    let duration_ms = u64::try_from(exit.wall.as_millis()).unwrap_or(u64::MAX);
    let result = json!({"text": text, "exit_code": exit.code, "signal": exit.signal, "duration_ms": duration_ms});
    let outcome = failure.map_or(Outcome::Succeeded, |failure| Outcome::Failed {
        failure,
        retry_after: None,
    });
    Ended {
        result: serde_json::to_vec(&result).ok(),
        usage: Usage {
            cpu_ms: u64::try_from(exit.cpu.as_millis()).unwrap_or(u64::MAX),
            memory_peak_bytes: exit.memory_peak_bytes,
            ..Usage::default()
        },
        messages,
        ..Ended::with(outcome)
    }
}
