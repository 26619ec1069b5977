//! From what a reply does to what is streamed: pieces, usage, and the end.

use std::time::Duration;

use common::message::{Message, Part, Usage};
use serde_json::Value;

use super::script::{Action, Script};
use crate::model::error::{Reason, Refusal};
use crate::model::{ModelEvent, ModelRequest, StopReason};

/// Characters that count as one token. No tokenizer: what matters is that it is always the same.
const TOKEN_CHARS: usize = 4;

/// One step of a performance.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Says this.
    Event(ModelEvent),
    /// Waits.
    Wait(Duration),
    /// Refuses, and ends.
    Refuse(Refusal),
    /// Breaks the connection, and ends.
    Cut,
    /// Falls silent for ever.
    Stall,
}

/// The steps of a reply. Its usage counts the request and what is said, exactly as the steps have it.
pub fn perform(actions: &[Action], request: &ModelRequest, script: &Script) -> Vec<Step> {
    let mut stage = Stage {
        steps: Vec::new(),
        chars: 0,
        script,
    };
    let given = actions.iter().find_map(|action| match action {
        Action::Usage(usage) => Some(*usage),
        _ => None,
    });
    let counted = Usage {
        input_tokens: request_tokens(request),
        output_tokens: 1,
        ..Usage::default()
    };
    let first = given.map_or(counted, |given| Usage {
        output_tokens: given.output_tokens.min(1),
        reasoning_tokens: 0,
        ..given
    });
    let calls_before = request.messages.iter().flat_map(Message::tool_calls).count();
    let mut calls = 0_usize;
    let mut stop_reason = None;
    for action in actions {
        if stage.steps.is_empty() && !matches!(action, Action::Error { .. } | Action::Stall | Action::Cut) {
            stage.steps.push(Step::Event(ModelEvent::Usage(first)));
        }
        match action {
            Action::Text(text) => stage.pieces(text, |text| ModelEvent::TextDelta { text }),
            Action::Reasoning(text) => {
                stage.pieces(text, |text| ModelEvent::ReasoningDelta { text });
                let signature = Some("scripted".to_owned());
                stage.steps.push(Step::Event(ModelEvent::ReasoningEnd {
                    signature,
                    redacted: None,
                }));
            }
            Action::ToolCall { name, input } => {
                calls += 1;
                stage.call(calls_before + calls, name, input);
            }
            Action::Wait(pause) => stage.steps.push(Step::Wait(*pause)),
            Action::Stop(reason) => stop_reason = Some(reason.clone()),
            Action::Usage(_) => {}
            Action::Error { .. } | Action::Cut | Action::Stall => {
                stage.steps.push(broken(action));
                return stage.steps;
            }
        }
    }
    let usage = given.unwrap_or_else(|| Usage {
        output_tokens: tokens(stage.chars).max(1),
        ..first
    });
    let usual = if calls > 0 {
        StopReason::ToolUse
    } else {
        StopReason::EndTurn
    };
    stage.steps.push(Step::Event(ModelEvent::Usage(usage)));
    stage.steps.push(Step::Event(ModelEvent::End {
        stop_reason: stop_reason.unwrap_or(usual),
    }));
    stage.steps
}

struct Stage<'a> {
    steps: Vec<Step>,
    chars: usize,
    script: &'a Script,
}

impl Stage<'_> {
    fn pieces(&mut self, text: &str, event: impl Fn(String) -> ModelEvent) {
        let mut rest = text.chars().peekable();
        while rest.peek().is_some() {
            let piece: String = rest.by_ref().take(self.script.piece_chars.max(1)).collect();
            self.chars += piece.chars().count();
            if !self.script.pause.is_zero() {
                self.steps.push(Step::Wait(self.script.pause));
            }
            self.steps.push(Step::Event(event(piece)));
        }
    }

    fn call(&mut self, n: usize, name: &str, input: &Value) {
        let index = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let id = format!("toolu_scripted_{n}");
        self.steps.push(Step::Event(ModelEvent::ToolCallStart {
            index,
            id,
            name: name.to_owned(),
        }));
        let json = match input {
            Value::String(as_it_is) => as_it_is.clone(),
            input => input.to_string(),
        };
        self.pieces(&json, |json| ModelEvent::ToolCallDelta { index, json });
        self.steps.push(Step::Event(ModelEvent::ToolCallEnd { index }));
    }
}

fn broken(action: &Action) -> Step {
    match action {
        Action::Error {
            status,
            kind,
            message,
            retry_after,
        } => Step::Refuse(Refusal {
            reason: match status {
                400 => Reason::InvalidRequest,
                401 | 403 => Reason::Authentication,
                402 => Reason::SpendLimit,
                404 => Reason::NotFound,
                413 => Reason::TooLarge,
                429 => Reason::RateLimited,
                503 | 529 => Reason::Overloaded,
                _ => Reason::Server,
            },
            status: Some(*status),
            kind: kind.clone(),
            message: message.clone(),
            request_id: None,
            retry_after: *retry_after,
            should_retry: None,
        }),
        Action::Stall => Step::Stall,
        _ => Step::Cut,
    }
}

/// Tokens of a request, as this provider counts them.
pub fn request_tokens(request: &ModelRequest) -> u64 {
    let chars = |text: &str| text.chars().count();
    let of_part = |part: &Part| match part {
        Part::Text { text } | Part::Reasoning { text, .. } => chars(text),
        Part::ToolCall { name, input, .. } => chars(name) + chars(&input.to_string()),
        Part::ToolResult { output, .. } => chars(output),
        Part::File { path, .. } => chars(path),
        Part::Status { .. } => 0,
    };
    let messages: usize = request
        .messages
        .iter()
        .flat_map(|message| &message.parts)
        .map(of_part)
        .sum();
    let tools: usize = request
        .tools
        .iter()
        .map(|tool| chars(&tool.name) + chars(&tool.description))
        .sum();
    tokens(chars(&request.system) + messages + tools).max(1)
}

fn tokens(chars: usize) -> u64 {
    u64::try_from(chars.div_ceil(TOKEN_CHARS)).unwrap_or(u64::MAX)
}
