//! How the command line is called: its flags, its variables, its session.

use std::fmt::Write as _;

use common::agent::AgentDefinition;
use common::message::{Message, Part, Role};

use super::super::super::exec::Broken;
use super::super::place::Place;
use super::super::prompt;
use crate::model::ModelName;
use crate::sandbox::{Input, RunSpec};

/// Where it keeps its transcripts: in the workspace, so that they are saved with it.
const CONFIG_DIR: &str = "/workspace/.hothouse/claude";

/// Tools that mean nothing in a turn that ends, or that would ask a provider's own servers.
const WITHOUT: &str =
    "CronCreate,CronDelete,CronList,ScheduleWakeup,EnterWorktree,ExitWorktree,SendMessage,Workflow,WebFetch";

/// Bytes of the conversation so far that go in front of a prompt where there is no transcript.
const RECALL_MAX: usize = 200 << 10;

/// The program's own memory of a conversation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Session {
    id: String,
    is_known: bool,
}

impl Session {
    /// The session of this conversation, or of this run; whether its transcript is in the workspace.
    pub(super) async fn find(place: &Place<'_>, history: &[Message]) -> Result<Self, Broken> {
        let job = &place.context.job;
        let id = job
            .conversation_id
            .map_or_else(|| job.id.to_string(), |id| id.to_string());
        if history.len() < 2 && job.attempt < 2 {
            return Ok(Self { id, is_known: false });
        }
        let pattern = format!("{CONFIG_DIR}/projects/*/{id}.jsonl");
        let spec = RunSpec {
            stdin: Input::None,
            ..RunSpec::new([
                "/bin/sh".to_owned(),
                "-c".to_owned(),
                format!("ls {pattern} >/dev/null 2>&1"),
            ])
        };
        let is_known = place.sandbox().run(spec).await?.wait().await?.is_success();
        Ok(Self { id, is_known })
    }

    /// What the user says now, after what was said before where the program does not remember it.
    pub(super) fn prompt(&self, history: &[Message]) -> String {
        let now = prompt(history);
        let before = history.split_last().map_or(&[][..], |(_, before)| before);
        if self.is_known || before.is_empty() {
            return now;
        }
        format!(
            "The conversation so far:\n\n{}\nWhat follows is the user's next message.\n\n{now}",
            recall(before)
        )
    }
}

/// A conversation as text, its end when it is long.
fn recall(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        let who = match message.role {
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        for part in &message.parts {
            // Writing to a string does not fail.
            let _written = match part {
                Part::Text { text: said } => writeln!(text, "{who}: {said}\n"),
                Part::ToolCall { name, input, .. } => writeln!(text, "{who} called {name}: {input}\n"),
                Part::ToolResult { output, .. } => writeln!(text, "It answered: {output}\n"),
                _ => Ok(()),
            };
        }
    }
    let from = text.ceil_char_boundary(text.len().saturating_sub(RECALL_MAX));
    text.split_off(from)
}

/// The command. Whatever comes from outside stands behind a `=`, so that it is never taken for a flag.
pub(super) fn argv(agent: &AgentDefinition, session: &Session, model: &ModelName) -> Vec<String> {
    let fixed = [
        "claude",
        "--print",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        // The sandbox is what keeps it: a question would have nobody to answer it.
        "--permission-mode=bypassPermissions",
        // Neither hooks nor servers that a workspace brings along.
        "--setting-sources=",
        "--strict-mcp-config",
    ];
    let mut argv: Vec<String> = fixed.map(str::to_owned).into();
    let session_flag = if session.is_known { "resume" } else { "session-id" };
    argv.push(format!("--{session_flag}={}", session.id));
    argv.push(format!("--max-turns={}", agent.max_steps));
    argv.push(format!("--model={}", model.model()));
    let searches = agent.provider_features.iter().any(|feature| feature == "web_search");
    let more = if searches { "" } else { ",WebSearch" };
    argv.push(format!("--disallowedTools={WITHOUT}{more}"));
    if !agent.instructions.is_empty() {
        argv.push(format!("--append-system-prompt={}", agent.instructions));
    }
    argv
}

/// The variables of a place, and those that keep the program to its gateway.
pub(super) fn env(mut env: Vec<(String, String)>, model: &ModelName) -> Vec<(String, String)> {
    let own = [
        ("CLAUDE_CONFIG_DIR", CONFIG_DIR),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("CLAUDE_CODE_DISABLE_AUTO_MEMORY", "1"),
        ("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "1"),
        // The gateway tries again by itself, and a call that is made anew without a stream would run its tools twice.
        ("CLAUDE_CODE_MAX_RETRIES", "2"),
        ("CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("DISABLE_TELEMETRY", "1"),
        // Small errands and helpers go to the same model: the agent names no other for them.
        ("ANTHROPIC_SMALL_FAST_MODEL", model.model()),
        ("ANTHROPIC_DEFAULT_HAIKU_MODEL", model.model()),
        ("ANTHROPIC_DEFAULT_SONNET_MODEL", model.model()),
        ("ANTHROPIC_DEFAULT_OPUS_MODEL", model.model()),
        ("CLAUDE_CODE_SUBAGENT_MODEL", model.model()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn session(is_known: bool) -> Session {
        Session {
            id: "s".to_owned(),
            is_known,
        }
    }

    #[test]
    fn what_comes_from_outside_is_no_flag() {
        let agent = AgentDefinition {
            instructions: "--dangerous --model=other".to_owned(),
            ..AgentDefinition::default()
        };
        let argv = argv(&agent, &session(true), &"anthropic/claude-x".parse().unwrap());
        assert!(argv.contains(&"--append-system-prompt=--dangerous --model=other".to_owned()));
        assert!(argv.contains(&"--resume=s".to_owned()) && argv.contains(&"--model=claude-x".to_owned()));
        assert!(
            argv.iter()
                .any(|arg| arg.starts_with("--disallowedTools=") && arg.ends_with(",WebSearch"))
        );
    }

    #[test]
    fn what_is_not_remembered_is_told() {
        let said = |text: &str| Message::user(text, DateTime::UNIX_EPOCH);
        let history = [said("first"), said("second")];
        assert_eq!(session(true).prompt(&history), "second");
        assert_eq!(session(false).prompt(&history[..1]), "first");
        let told = session(false).prompt(&history);
        assert!(told.contains("User: first\n") && told.ends_with("\n\nsecond"), "{told}");
        assert!(recall(&[said(&"é".repeat(RECALL_MAX))]).len() <= RECALL_MAX);
    }
}
