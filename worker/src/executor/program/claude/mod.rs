//! The `claude_code` harness: the real command line, headless, one turn at a time.
//!
//! A turn is taken by the process that took the one before it, where that still rests in the kept sandbox; by a spare that
//! was started before anybody came, where there is nothing to remember; else by one that is started for it. Its own
//! transcript of a conversation lies in the workspace and is saved with it, so the next turn resumes it on whatever
//! worker; where there is none, the conversation so far goes in front of the prompt.
//!
//! # Not here
//! What its lines mean is [`stream`]; which session is whose is [`session`]; the process itself is [`crate::claude`].

mod prompt;
mod session;
mod steering;
mod stream;
mod turn;

use std::time::Duration;

use common::agent::AgentDefinition;
use common::job::event::EventBody;
use common::message::Message;
use tokio_util::sync::CancellationToken;

use super::super::exec::Broken;
use super::place::{Place, not_started};
use super::transcript::Transcript;
use super::{Done, Task};
use crate::claude::{Error, Process, Whose, words};
use crate::events::Say;
use prompt::Memory;
use steering::Steering;
use turn::Turn;

/// How long a turn that is stopped may take to say so.
pub(super) const INTERRUPT_MAX: Duration = Duration::from_millis(500);

/// Takes one turn. `stop` asks it to end where it is.
pub(super) async fn run(
    place: &Place<'_>,
    (agent, task): (&AgentDefinition, &Task),
    transcript: &mut Transcript<'_>,
    stop: &CancellationToken,
) -> Result<Done, Broken> {
    let history = &task.history;
    let mut steering = Steering::new(place.context);
    let again = steering.heard_before().await;
    let is_again = place.context.job.attempt > 1;
    let say = |remembers| {
        let memory = match (remembers, is_again) {
            (false, _) => Memory::Nothing,
            (true, false) => Memory::Before,
            // The transcript of an attempt that failed is saved too.
            (true, true) => Memory::Begun,
        };
        words::user(&prompt::content(history, &again, (memory, &task.images)), None)
    };
    let begun = begin(place, agent, history, &say).await?;
    place.context.events.say(EventBody::Status {
        phase: "running".to_owned(),
        detail: Some(begun.how.to_owned()),
    });
    for message in &again {
        transcript.heard(message.clone());
    }
    let asked = async {
        match begun.prompt {
            Some(prompt) => Ok(begun.process.say(prompt).await?),
            None => Ok(()),
        }
    };
    // The program reads its files when its model asks for them, which is later.
    tokio::try_join!(asked, place.put_turn(agent, history, begun.note.as_deref()))?;
    let turn = Turn::new(begun.process, place, steering);
    let (done, process) = turn.follow(transcript, stop).await?;
    if let Some(mut process) = process {
        if let Some(whose) = whose(place, agent) {
            process.belongs_to(whose);
        }
        place.put_resident(process);
    }
    Ok(done)
}

/// A process for a turn.
struct Begun {
    process: Process,
    /// What the user says, where the process was not told it already.
    prompt: Option<String>,
    /// The id of its session, when that is not the conversation's own.
    note: Option<String>,
    /// For a person.
    how: &'static str,
}

/// Whose a process becomes that takes this turn. A run has no next turn.
fn whose(place: &Place<'_>, agent: &AgentDefinition) -> Option<Whose> {
    Some(Whose {
        conversation_id: place.context.job.conversation_id?,
        instructions: agent.instructions.clone(),
    })
}

/// `say` is what the user says, to one that remembers what was said before or does not.
async fn begin(
    place: &Place<'_>,
    agent: &AgentDefinition,
    history: &[Message],
    say: &impl Fn(bool) -> String,
) -> Result<Begun, Broken> {
    let gateway = &place.doors.gateway;
    if let Some(process) = place.take_resident()
        && let Some(begun) = woken(place, process, agent, say).await
    {
        return Ok(begun);
    }
    let session = session::find(place, history).await?;
    let secrets = (agent.instructions.as_str(), gateway.token());
    let process = Process::start(place.sandbox(), place.recipe()?, &session, secrets).await;
    Ok(Begun {
        process: process.map_err(not_started)?,
        prompt: Some(say(session.is_known())),
        note: None,
        how: if session.is_known() { "resumed" } else { "started" },
    })
}

/// The process that was here before, when it may take this turn.
async fn woken(
    place: &Place<'_>,
    mut process: Process,
    agent: &AgentDefinition,
    say: &impl Fn(bool) -> String,
) -> Option<Begun> {
    if place.recipe().ok() != Some(process.recipe()) || process.has_ended() {
        return None;
    }
    let is_spare = process.whose().is_none();
    if !is_spare && process.whose() != whose(place, agent).as_ref() {
        return None;
    }
    // One that waited begins with the turn as soon as it has taken the claim.
    let gateway = &place.doors.gateway;
    gateway.bind(process.token());
    let (woken, how) = if is_spare {
        (process.claim(&agent.instructions, say(false)).await, "waiting")
    } else {
        (process.wake().await.map_err(Into::into), "kept")
    };
    if let Err(error) = woken {
        // From here on it reaches no model. One that has called one is late with its answer alone: it has begun this turn, and
        // another would call a second time.
        let has_begun = !gateway.unbind();
        let is_late = matches!(error, Error::NoAnswer { .. });
        let (error, job_id) = (&error as &dyn std::error::Error, place.context.job.id);
        if !(is_late && has_begun) {
            tracing::warn!(error, how, %job_id, "a process is of no use, another one is started");
            return None;
        }
        tracing::info!(error, how, %job_id, "a process is slow, but has begun the turn");
    }
    Some(Begun {
        prompt: (!is_spare).then(|| say(true)),
        note: is_spare.then(|| process.session().to_owned()),
        process,
        how,
    })
}
