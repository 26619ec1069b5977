//! The `command` harness: the prompt goes in, lines come out.

use std::time::Duration;

use common::agent::AgentDefinition;
use common::job::event::EventBody;
use common::job::{Failure, FailureCode};

use super::super::exec::{Broken, outcome};
use super::super::text::Decoder;
use super::place::Place;
use super::protocol::Answer;
use super::transcript::Transcript;
use super::{Done, Used};
use crate::events::Say;
use crate::sandbox::{Channel, Input, Output, RunSpec};

/// What stands for the prompt among a command's arguments.
const PROMPT: &str = "{prompt}";

/// What stands for the agent's instructions.
const INSTRUCTIONS: &str = "{instructions}";

/// From the polite signal to the one that cannot be refused.
const GRACE: Duration = Duration::from_secs(1);

/// Runs the agent's command to its end.
pub(super) async fn run(
    place: &Place<'_>,
    agent: &AgentDefinition,
    prompt: &str,
    transcript: &mut Transcript<'_>,
) -> Result<Done, Broken> {
    let (argv, stdin) = invocation(agent, prompt)?;
    let spec = RunSpec {
        env: place.env(agent),
        stdin,
        timeout: Some(Duration::from_millis(place.context.job.timeout_ms)),
        grace: GRACE,
        // Events must not be cut out of the middle; the transcript has its own bound.
        keep_bytes: None,
        ..RunSpec::new(argv)
    };
    let mut running = place.start(spec).await?;
    let events = &place.context.events;
    let (mut answer, mut complaints) = (Answer::default(), Decoder::default());
    while let Some(output) = running.next().await {
        match output {
            Output::Stdout(bytes) => answer.take(&bytes, transcript, events),
            Output::Stderr(bytes) => stderr(complaints.push(&bytes), events),
            Output::Cut {
                channel: Channel::Stdout,
                dropped,
            } => answer.cut(dropped, transcript, events),
            Output::Cut { .. } => {}
        }
    }
    stderr(complaints.finish(), events);
    answer.finish(transcript, events);
    let exit = running.wait().await?;
    let complaint = answer.complaint();
    let failure = outcome::failure(&exit, place.context.job.timeout_ms).map(|failure| match complaint {
        Some(complaint) => Failure::new(failure.code, format!("{}: {complaint}", failure.message)),
        None => failure,
    });
    Ok(Done {
        used: Used::from(&exit),
        failure,
        steps: 0,
    })
}

fn stderr(text: String, events: &impl Say) {
    if !text.is_empty() {
        events.say(EventBody::Stderr { text });
    }
}

/// The command with its placeholders filled in, and its input: the prompt, unless an argument has it.
fn invocation(agent: &AgentDefinition, prompt: &str) -> Result<(Vec<String>, Input), Failure> {
    let command = agent.command.as_deref().unwrap_or_default();
    if command.is_empty() {
        return Err(Failure::new(FailureCode::InvalidInput, "the agent has no command"));
    }
    let argv: Vec<String> = command
        .iter()
        .map(|word| fill(word, &[(PROMPT, prompt), (INSTRUCTIONS, &agent.instructions)]))
        .collect();
    let is_argument = command.iter().any(|word| word.contains(PROMPT));
    let stdin = if is_argument {
        Input::None
    } else {
        Input::Bytes(prompt.as_bytes().to_vec().into())
    };
    Ok((argv, stdin))
}

/// Replaces placeholders in one pass: what is filled in is not looked at again.
fn fill(word: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((at, name, value)) = values
        .iter()
        .filter_map(|(name, value)| Some((rest.find(name)?, *name, *value)))
        .min_by_key(|(at, ..)| *at)
    {
        let (before, after) = rest.split_at(at);
        filled.extend([before, value]);
        rest = after.strip_prefix(name).unwrap_or_default();
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    fn agent(command: &[&str]) -> AgentDefinition {
        AgentDefinition {
            instructions: "be {prompt}".to_owned(),
            command: Some(command.iter().map(|&word| word.to_owned()).collect()),
            ..AgentDefinition::default()
        }
    }

    #[test]
    fn the_prompt_is_input_unless_an_argument_has_it() {
        let (argv, stdin) = invocation(&agent(&["cat", "-"]), "hello").unwrap();
        assert_eq!(argv, ["cat", "-"]);
        assert_matches!(stdin, Input::Bytes(bytes) if bytes == "hello");
        let (argv, stdin) = invocation(&agent(&["say", "--text={prompt}"]), "hello").unwrap();
        assert_eq!(argv, ["say", "--text=hello"]);
        assert_matches!(stdin, Input::None);
    }

    #[test]
    fn what_is_filled_in_is_not_filled_in_again() {
        let (argv, _) = invocation(&agent(&["x", "{instructions}|{prompt}|{other}"]), "{instructions}").unwrap();
        assert_eq!(argv, ["x", "be {prompt}|{instructions}|{other}"]);
    }

    #[test]
    fn an_agent_without_a_command_runs_nothing() {
        assert_eq!(
            invocation(&agent(&[]), "x").unwrap_err().code,
            FailureCode::InvalidInput
        );
    }
}
