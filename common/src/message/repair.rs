//! Repair: any history made valid for the next model call.
//!
//! Turns are cancelled, workers die, people edit and import; a provider answers 400 to all that it finds odd, and a
//! conversation that got a 400 once gets it for ever. So no request is built from a stored history directly: it is
//! built from [`repair`] of it.
//!
//! # What holds afterwards
//! - Roles alternate, the first is `user`, and no message is empty.
//! - Every tool call has exactly one result, in the message directly after it, in the order of the calls and before
//!   anything else there; there is no other result. Call ids are unique and in the alphabet of both wires.
//! - An assistant message does not end in reasoning. No part is blank text or a status note.
//! - A history that is valid already comes back unchanged, so repairing twice is repairing once.

use std::collections::{HashMap, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Message, Part, Role};
use crate::ids::MessageId;

/// The result given to a tool call whose own was lost.
pub const MISSING_RESULT: &str = "No result: the turn was stopped or interrupted before this call finished. It may have \
                                  run in part, or not at all.";

/// The id of a message that no one wrote.
const UNWRITTEN: MessageId = MessageId(Uuid::nil());

/// What stands in front of a history that begins with the assistant.
const OPENING: &str = "(The conversation begins with the assistant.)";

/// Characters of a call's id or a tool's name that are kept; both wires refuse longer ones.
const NAME_CHARS_MAX: usize = 64;

/// The history, valid for the next model call. See the module for what that means.
pub fn repair(history: Vec<Message>) -> Vec<Message> {
    let mut results = Results::default();
    let runs = into_runs(history, &mut results);
    let mut repaired: Vec<Message> = Vec::with_capacity(runs.len());
    for mut run in runs {
        if run.role == Role::Assistant {
            trim_reasoning(&mut run.parts);
        }
        let answers = results.take_for(&run.parts);
        append(&mut repaired, run);
        if let Some(answers) = answers {
            append(&mut repaired, answers);
        }
    }
    if let Some(first) = repaired.first().filter(|message| message.role == Role::Assistant) {
        let opening = Message {
            parts: vec![Part::text(OPENING)],
            ..inserted(first.created_at)
        };
        repaired.insert(0, opening);
    }
    repaired
}

/// Cuts the history into runs of one role: a result is the user's word wherever it stood, a call the assistant's.
/// Gives every call its final id on the way and moves the results out of the runs into `results`.
fn into_runs(history: Vec<Message>, results: &mut Results) -> Vec<Message> {
    let mut runs: Vec<Message> = Vec::with_capacity(history.len());
    for message in history {
        let (role, parts) = (message.role, message.parts);
        let mut header = Message {
            parts: Vec::new(),
            ..message
        };
        let mut open: Option<Message> = None;
        for part in parts {
            let Some((side, part)) = admit(role, part) else {
                continue;
            };
            if open.as_ref().is_none_or(|run| run.role != side) {
                runs.extend(open.take());
                results.run += 1;
                let run = Message {
                    role: side,
                    ..header.clone()
                };
                // Only the first piece of a message that is cut up keeps its id and its usage.
                (header.id, header.usage) = (UNWRITTEN, None);
                open = Some(run);
            }
            let Some(run) = open.as_mut() else { continue };
            match part {
                Part::ToolCall { id, name, input } => run.parts.push(results.call(&id, &name, input)),
                Part::ToolResult { .. } => results.answer(part, run),
                other => run.parts.push(other),
            }
        }
        runs.extend(open);
    }
    runs
}

/// The side that a part speaks for, or nothing when no model may see it there.
fn admit(role: Role, part: Part) -> Option<(Role, Part)> {
    match part {
        Part::Status { .. } => None,
        Part::Text { ref text } if text.trim().is_empty() => None,
        Part::ToolResult { .. } => Some((Role::User, part)),
        Part::ToolCall { .. } | Part::Reasoning { .. } if role == Role::User => None,
        part => Some((role, part)),
    }
}

/// The calls met so far and what answers them.
#[derive(Default)]
struct Results {
    /// Number of the run being read.
    run: usize,
    /// Final ids in use.
    taken: HashSet<String>,
    /// Stored id → the run of its latest calls, and their final ids that have no result yet, in order.
    unanswered: HashMap<String, (usize, VecDeque<String>)>,
    /// Final id → its result and the message that brought it, without that message's parts.
    answers: HashMap<String, (Part, Message)>,
}

impl Results {
    /// The call under its final id. Local servers number calls anew in every answer, or leave the id empty.
    fn call(&mut self, stored: &str, name: &str, input: Value) -> Part {
        let clean = wire_name(stored, "call");
        let mut id = clean.clone();
        let mut n = 2_u64;
        while !self.taken.insert(id.clone()) {
            let suffix = format!("-{n}");
            id = clean.chars().take(NAME_CHARS_MAX - suffix.len()).collect::<String>() + &suffix;
            n += 1;
        }
        let (run, ids) = self.unanswered.entry(stored.to_owned()).or_default();
        if *run != self.run {
            (*run, *ids) = (self.run, VecDeque::new());
        }
        ids.push_back(id.clone());
        let input = if input.is_object() {
            input
        } else {
            json!({ "input": input })
        };
        Part::ToolCall {
            id,
            name: wire_name(name, "tool"),
            input,
        }
    }

    /// Keeps a result when it answers a call before it that has none.
    fn answer(&mut self, part: Part, run: &Message) {
        let Part::ToolResult {
            tool_call_id,
            is_error,
            output,
        } = part
        else {
            return;
        };
        let Some(id) = self
            .unanswered
            .get_mut(&tool_call_id)
            .and_then(|(_, ids)| ids.pop_front())
        else {
            return;
        };
        let part = Part::ToolResult {
            tool_call_id: id.clone(),
            is_error,
            output,
        };
        let source = Message {
            parts: Vec::new(),
            ..run.clone()
        };
        self.answers.insert(id, (part, source));
    }

    /// The message that answers the calls among `parts`, if there are any.
    fn take_for(&mut self, parts: &[Part]) -> Option<Message> {
        let mut source = None;
        let mut answers = Vec::new();
        for part in parts {
            let Part::ToolCall { id, .. } = part else { continue };
            if let Some((answer, from)) = self.answers.remove(id) {
                source.get_or_insert(from);
                answers.push(answer);
            } else {
                let output = MISSING_RESULT.to_owned();
                answers.push(Part::ToolResult {
                    tool_call_id: id.clone(),
                    is_error: true,
                    output,
                });
            }
        }
        let source = source.unwrap_or_else(|| inserted(DateTime::UNIX_EPOCH));
        (!answers.is_empty()).then_some(Message {
            parts: answers,
            ..source
        })
    }
}

/// Appends a message, joining it to the last one when both are from the same side.
fn append(repaired: &mut Vec<Message>, mut next: Message) {
    if next.parts.is_empty() {
        return;
    }
    match repaired.last_mut() {
        Some(last) if last.role == next.role => {
            last.parts.append(&mut next.parts);
            // Two pieces of one message carry its usage both.
            if let Some(more) = next.usage.filter(|_| last.id != next.id) {
                *last.usage.get_or_insert_default() += more;
            }
        }
        Some(last) if next.id == UNWRITTEN => {
            next.created_at = next.created_at.max(last.created_at);
            repaired.push(next);
        }
        _ => repaired.push(next),
    }
}

/// A user's message that no one wrote.
fn inserted(created_at: DateTime<Utc>) -> Message {
    Message {
        id: UNWRITTEN,
        role: Role::User,
        parts: Vec::new(),
        job_id: None,
        usage: None,
        created_at,
    }
}

/// Reasoning must lead to something: what stands at the end was cut off before it did.
fn trim_reasoning(parts: &mut Vec<Part>) {
    while matches!(parts.last(), Some(Part::Reasoning { .. })) {
        parts.pop();
    }
}

/// A name in the alphabet of both wires: letters, digits, `_` and `-`.
fn wire_name(name: &str, fallback: &str) -> String {
    let clean: String = name
        .chars()
        .take(NAME_CHARS_MAX)
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    if clean.is_empty() { fallback.to_owned() } else { clean }
}

#[cfg(test)]
mod tests;
