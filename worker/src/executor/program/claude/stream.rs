//! The lines of the command line's `stream-json`, as a turn's events and messages: pure but for whom it tells.
//!
//! Text and thinking come twice, in pieces and whole; the pieces are streamed and kept, and the whole is used where no
//! piece came before it. What a helper of the model says belongs to the call that began it. Lines of a kind that is not
//! known are passed by: newer versions have more of them.

use common::job::{Failure, FailureCode};
use serde_json::{Value, json};

use super::super::super::native::{ToolCall, ToolOutcome};
use super::super::transcript::Transcript;

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Stream {
    has_text: bool,
    has_thinking: bool,
    open_tools: usize,
    ending: Option<Ending>,
}

/// How a turn ended, in the program's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    subtype: String,
    is_error: bool,
    text: String,
    steps: u64,
}

/// The user's message, as a line.
pub(super) fn user(text: &str) -> String {
    json!({"type": "user", "message": {"role": "user", "content": text}, "parent_tool_use_id": null, "session_id": ""})
        .to_string()
        + "\n"
}

/// The wish that it stops where it is, as a line.
pub(super) fn interrupt() -> String {
    json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}).to_string() + "\n"
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
            "control_request" => return Some(refusal(&line)),
            _ => {}
        }
        None
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
        self.ending.as_ref().map_or(0, |ending| ending.steps)
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
                ("text", Some(call)) => transcript.tool_output(call, &format!("{}\n", word("text"))),
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
        Some("compact_boundary") => transcript.status("claude_code", "the conversation was summed up to fit"),
        _ => {}
    }
}

/// It asks for what only a person at a terminal could answer, and waits until it hears something.
fn refusal(line: &Value) -> String {
    let response = json!({"subtype": "error", "request_id": line["request_id"], "error": "nobody is here to answer"});
    json!({"type": "control_response", "response": response}).to_string() + "\n"
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
