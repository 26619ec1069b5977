//! The lines of the command line's `stream-json`, as a turn's events and messages: pure but for whom it tells.
//!
//! Text and thinking come twice, in pieces and whole; the pieces are streamed and kept, and the whole is used where no
//! piece came before it. What a helper of the model says belongs to the call that began it. Lines of a kind that is not
//! known are passed by: newer versions have more of them.

use common::job::{Failure, FailureCode};
use serde_json::Value;

use super::super::super::native::{ToolCall, ToolOutcome};
use super::super::transcript::Transcript;
use crate::claude::words;

/// Characters of a helper's call that are shown.
const HELPING_MAX: usize = 300;

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Stream {
    has_text: bool,
    has_thinking: bool,
    open_tools: usize,
    ending: Option<Ending>,
    /// Steps of answers that were not the end.
    steps_before: u64,
    begun: Vec<String>,
}

/// How a turn ended, in the program's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    subtype: String,
    is_error: bool,
    text: String,
    steps: u64,
}

impl Stream {
    /// Takes in a line; answers what is to be said in reply.
    pub(super) fn line(&mut self, line: &[u8], transcript: &mut Transcript<'_>) -> Option<String> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let helper_of = line["parent_tool_use_id"].as_str();
        match line["type"].as_str().unwrap_or_default() {
            "stream_event" if helper_of.is_none() => self.piece(&line["event"], transcript),
            "assistant" => self.assistant(&line["message"], helper_of, transcript),
            "user" => self.results(&line["message"]["content"], helper_of, transcript),
            "system" => system(&line, transcript),
            "result" => self.ending = Some(Ending::read(&line)),
            "command_lifecycle" if line["state"] == "started" => {
                self.begun.extend(line["command_uuid"].as_str().map(str::to_owned));
            }
            "control_request" => return Some(words::refusal(&line)),
            _ => {}
        }
        None
    }

    /// Messages of the user that were begun with since the last look, by their ids.
    pub(super) fn begun(&mut self) -> Vec<String> {
        std::mem::take(&mut self.begun)
    }

    /// The answer was not the end: something else was said meanwhile.
    pub(super) fn go_on(&mut self) {
        self.steps_before += self.ending.take().map_or(0, |ending| ending.steps);
    }

    /// Whether the turn is over.
    pub(super) fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// How it ended.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Whether a tool runs.
    pub(super) fn has_open_tools(&self) -> bool {
        self.open_tools > 0
    }

    /// Calls of the model, as the program counts them.
    pub(super) fn steps(&self) -> u64 {
        self.steps_before + self.ending.as_ref().map_or(0, |ending| ending.steps)
    }

    fn piece(&mut self, event: &Value, transcript: &mut Transcript<'_>) {
        let delta = &event["delta"];
        match (event["type"].as_str(), delta["type"].as_str()) {
            (Some("message_start"), _) => (self.has_text, self.has_thinking) = (false, false),
            (_, Some("text_delta")) => {
                self.has_text = true;
                transcript.text(delta["text"].as_str().unwrap_or_default());
            }
            (_, Some("thinking_delta")) => {
                self.has_thinking = true;
                transcript.reasoning(delta["thinking"].as_str().unwrap_or_default());
            }
            _ => {}
        }
    }

    fn assistant(&mut self, message: &Value, helper_of: Option<&str>, transcript: &mut Transcript<'_>) {
        for block in message["content"].as_array().into_iter().flatten() {
            let word = |name: &str| block[name].as_str().unwrap_or_default();
            match (word("type"), helper_of) {
                ("text" | "thinking", Some(call)) => transcript.tool_output(call, &format!("{}\n", word(word("type")))),
                ("tool_use", Some(call)) => transcript.tool_output(call, &helping(word("name"), &block["input"])),
                // The pieces of one block come before it, and those of the next after it.
                ("text", None) if !std::mem::take(&mut self.has_text) => transcript.text(word("text")),
                ("thinking", None) if !std::mem::take(&mut self.has_thinking) => transcript.reasoning(word("thinking")),
                ("tool_use", None) => {
                    self.open_tools += 1;
                    transcript.tool_call(ToolCall {
                        id: word("id").to_owned(),
                        name: word("name").to_owned(),
                        input: block["input"].clone(),
                    });
                }
                _ => {}
            }
        }
    }

    fn results(&mut self, content: &Value, helper_of: Option<&str>, transcript: &mut Transcript<'_>) {
        let blocks = content.as_array().into_iter().flatten();
        for block in blocks.filter(|block| helper_of.is_none() && block["type"] == "tool_result") {
            self.open_tools = self.open_tools.saturating_sub(1);
            let outcome = ToolOutcome {
                output: text_of(&block["content"]),
                is_error: block["is_error"].as_bool().unwrap_or(false),
            };
            transcript.tool_result(block["tool_use_id"].as_str().unwrap_or_default(), &outcome);
        }
    }
}

/// What a helper does, in a line.
fn helping(name: &str, input: &Value) -> String {
    let input: String = input.to_string().chars().take(HELPING_MAX).collect();
    format!("[{name} {input}]\n")
}

/// The text of a tool's result, which is a text or a list of blocks.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let text = |block: &Value| match block["text"].as_str() {
                Some(text) => text.to_owned(),
                None => format!("[{}]", block["type"].as_str().unwrap_or("something")),
            };
            blocks.iter().map(text).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn system(line: &Value, transcript: &Transcript<'_>) {
    match line["subtype"].as_str() {
        Some("init") => {
            let version = line["claude_code_version"].as_str().unwrap_or("of an unknown version");
            transcript.status("claude_code", &format!("Claude Code {version}"));
        }
        Some("api_retry") => {
            let error = line["error"].as_str().unwrap_or("a call failed");
            transcript.status("model", &format!("{error}; trying again"));
        }
        Some("status") if line["status"] == "compacting" => {
            transcript.status("claude_code", "the conversation is summed up to fit");
        }
        Some("compact_boundary") => transcript.status("claude_code", "the conversation was summed up to fit"),
        _ => {}
    }
}

impl Ending {
    fn read(line: &Value) -> Self {
        let errors = line["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let errors = errors.collect::<Vec<_>>().join("; ");
        Self {
            subtype: line["subtype"].as_str().unwrap_or_default().to_owned(),
            is_error: line["is_error"].as_bool().unwrap_or(false),
            text: line["result"].as_str().map_or(errors, str::to_owned),
            steps: line["num_turns"].as_u64().unwrap_or(0),
        }
    }

    /// The failure that it means; none for an answer. An error of the model's provider comes as a success whose text is
    /// the error.
    pub(super) fn failure(&self) -> Option<Failure> {
        let why = |otherwise: &str| {
            let text = if self.text.is_empty() {
                otherwise
            } else {
                self.text.as_str()
            };
            text.chars().take(1_000).collect::<String>()
        };
        match self.subtype.as_str() {
            "success" if !self.is_error => None,
            "success" => Some(Failure::new(
                FailureCode::ModelFailed,
                why("the model's provider failed"),
            )),
            "error_max_turns" => {
                let message = "the agent took its last step without an answer";
                Some(Failure::new(FailureCode::MaxSteps, message))
            }
            other => Some(Failure::new(
                FailureCode::NonzeroExit,
                format!("Claude Code ended with {other}: {}", why("no reason")),
            )),
        }
    }
}

#[cfg(test)]
mod tests;
