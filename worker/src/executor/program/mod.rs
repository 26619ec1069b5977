//! Agents that are programs: `command`, any program that reads a prompt and prints an answer.
//!
//! The program runs in its environment's sandbox as an `exec` job's does, with the agent's way out. What it prints
//! becomes the turn's events and messages; how it ends is how the attempt ends. docs/harnesses.md is its manual.
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

use std::time::Instant;

use common::agent::AgentDefinition;
use common::job::decision::Outcome;
use common::job::{Failure, Usage};
use common::message::{Message, Role};
use common::workspace::Owner;
use serde_json::json;

use super::exec::{Broken, outcome};
use super::keeper::Keeper;
use super::native::EventSink;
use super::way_out::WayOut;
use super::{Context, Ended, home};
use crate::events::Say;
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
    let mut transcript = Transcript::new(&sink, &context.clock, context.job.id);
    let way_out = WayOut::new(&context);
    let mut keeper = Keeper::new(context.orders.clone());
    let (done, left) = match Place::take(&context, &mut keeper, &way_out, &agent, owner).await {
        Ok(place) => {
            let done = attempt(&place, &mut keeper, &way_out, (&agent, &history), &mut transcript).await;
            (done, place.leave().await)
        }
        Err(broken) => (Err(broken), Ok(())),
    };
    way_out.end().await;
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
    ended.usage.sandbox_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    home::unless_unsaved(ended, left, &context.events)
}

/// How a program ended, and what it said of that itself.
struct Done {
    exit: Exit,
    complaint: Option<String>,
}

async fn attempt(
    place: &Place<'_>,
    keeper: &mut Keeper,
    way_out: &WayOut,
    (agent, history): (&AgentDefinition, &[Message]),
    transcript: &mut Transcript<'_>,
) -> Result<Done, Broken> {
    let work = async {
        place.put_turn(agent, history).await?;
        command::run(place, agent, &prompt(history), transcript).await
    };
    let work = way_out.during(place.sandbox(), place.policy(agent), work);
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
    Ended {
        outcome: failure.map_or(Outcome::Succeeded, |failure| Outcome::Failed {
            failure,
            retry_after: None,
        }),
        result: serde_json::to_vec(&result).ok(),
        usage: Usage {
            cpu_ms: u64::try_from(exit.cpu.as_millis()).unwrap_or(u64::MAX),
            memory_peak_bytes: exit.memory_peak_bytes,
            ..Usage::default()
        },
        messages,
        children: Vec::new(),
    }
}
