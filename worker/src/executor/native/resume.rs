//! What a turn begins with when an earlier attempt has done a part of it.
//!
//! Rows come from every attempt that existed, a stale one included, so there may be two answers for a step. The chain
//! that counts is the one that the highest attempt has built on: each row names the attempt of the answer before it, so
//! it is read backwards from that attempt's last row. Whoever reads later reads the same chain, however late a stale
//! attempt writes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use common::message::Message;

use super::ToolOutcome;
use super::journal::{Answered, CallKey};

/// What is known of the turn when it begins.
#[derive(Clone, Debug, Default)]
pub struct Resume {
    /// The steps that have an answer, in order. The last may lack results.
    pub steps: Vec<FinishedStep>,
    /// Messages that were heard before, with their step, and whether those who follow have seen them.
    pub heard: Vec<(u32, Message, bool)>,
    /// What people said to calls that need permission, by step and place.
    pub verdicts: HashMap<(u32, u32), Verdict>,
    /// What the model must know about the interruption, such as that files are gone.
    pub notice: Option<String>,
}

/// A step that has an answer.
#[derive(Clone, Debug)]
pub struct FinishedStep {
    /// The answer.
    pub answer: Answered,
    /// The attempt that got it.
    pub attempt: u32,
    /// What its tool calls brought, by their place.
    pub results: BTreeMap<u32, ToolOutcome>,
    /// The attempts that ran its tools.
    pub ran_by: BTreeSet<u32>,
    /// Whether those who follow have seen the answer, because the log of its attempt stands.
    pub is_said: bool,
    /// Whether they have seen the results.
    pub is_done_said: bool,
}

/// What was said to a call that needs permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Open {
        /// Until when somebody may.
        deadline: DateTime<Utc>,
    },
    /// It may run.
    Approved,
    /// It may not.
    Denied {
        /// Why, if they said so.
        comment: Option<String>,
    },
    /// Nobody answered in time, so it may not.
    Expired,
}

/// A row of the journal.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who wrote it.
    pub attempt: u32,
    /// Which call.
    pub key: CallKey,
    /// What it brought.
    pub brought: Brought,
}

/// What a row holds.
#[derive(Clone, Debug)]
pub enum Brought {
    /// An answer of the model.
    Answer(Box<Answered>),
    /// What a tool answered.
    Outcome(ToolOutcome),
}

/// The steps of the chain that counts. `said_until` is the last attempt whose log stands.
pub fn chain(rows: Vec<Row>, said_until: u32) -> Vec<FinishedStep> {
    // The deepest row of the highest attempt; of a step, a tool's row is behind the answer.
    let last = rows.iter().max_by_key(|row| (row.attempt, row.key.step, row.key.place));
    let Some(last) = last else { return Vec::new() };
    let mut wanted = match last.key.place {
        Some(_) => last.key.parent,
        None => Some(last.attempt),
    };
    let mut step = last.key.step;
    let mut answers: HashMap<(u32, u32), (Option<u32>, Answered)> = HashMap::new();
    let mut outcomes: HashMap<(u32, u32), BTreeMap<u32, (u32, ToolOutcome)>> = HashMap::new();
    for Row { attempt, key, brought } in rows {
        match (brought, key.place, key.parent) {
            (Brought::Answer(answer), None, parent) => {
                answers.insert((key.step, attempt), (parent, *answer));
            }
            (Brought::Outcome(outcome), Some(place), Some(parent)) => {
                let results = outcomes.entry((key.step, parent)).or_default();
                let newer = results.get(&place).is_none_or(|(known, _)| *known < attempt);
                if newer {
                    results.insert(place, (attempt, outcome));
                }
            }
            // Not of this version.
            _ => {}
        }
    }
    let mut steps = Vec::new();
    while let Some(attempt) = wanted {
        let Some((parent, answer)) = answers.remove(&(step, attempt)) else {
            return Vec::new();
        };
        let results = outcomes.remove(&(step, attempt)).unwrap_or_default();
        let calls = answer.message.tool_calls().count();
        steps.push(FinishedStep {
            ran_by: results.values().map(|(attempt, _)| *attempt).collect(),
            answer,
            attempt,
            is_said: attempt <= said_until,
            is_done_said: results.len() == calls && results.values().all(|(attempt, _)| *attempt <= said_until),
            results: results
                .into_iter()
                .map(|(place, (_, outcome))| (place, outcome))
                .collect(),
        });
        wanted = parent;
        match step.checked_sub(1) {
            Some(before) => step = before,
            None => break,
        }
    }
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use common::message::{Part, Role};
    use serde_json::json;

    use super::*;
    use crate::model::StopReason;

    fn answer(attempt: u32, step: u32, parent: Option<u32>) -> Row {
        let call = |place: u32| Part::ToolCall {
            id: format!("c{place}"),
            name: "say".to_owned(),
            input: json!({}),
        };
        let message = Message::new(Role::Assistant, vec![call(0), call(1)], DateTime::UNIX_EPOCH);
        Row {
            attempt,
            key: CallKey {
                step,
                place: None,
                parent,
            },
            brought: Brought::Answer(Box::new(Answered {
                message,
                faults: Vec::new(),
                stop_reason: StopReason::ToolUse,
                used: None,
            })),
        }
    }

    fn outcome(attempt: u32, step: u32, parent: u32, place: u32) -> Row {
        Row {
            attempt,
            key: CallKey {
                step,
                place: Some(place),
                parent: Some(parent),
            },
            brought: Brought::Outcome(ToolOutcome::ok(format!("{attempt}"))),
        }
    }

    fn shape(rows: Vec<Row>) -> Vec<(u32, Vec<(u32, String)>)> {
        let outputs = |step: FinishedStep| {
            let results = step.results.into_iter();
            (
                step.attempt,
                results.map(|(place, outcome)| (place, outcome.output)).collect(),
            )
        };
        chain(rows, 0).into_iter().map(outputs).collect()
    }

    #[test]
    fn results_of_several_attempts_complete_one_answer() {
        let rows = vec![
            answer(1, 0, None),
            outcome(1, 0, 1, 1),
            outcome(2, 0, 1, 0),
            answer(2, 1, Some(1)),
        ];
        assert_eq!(
            shape(rows),
            [(1, vec![(0, "2".to_owned()), (1, "1".to_owned())]), (2, Vec::new())]
        );
    }

    #[test]
    fn what_a_stale_attempt_writes_late_changes_nothing_that_was_built_on() {
        let mut rows = vec![answer(1, 0, None), answer(3, 1, Some(1)), outcome(3, 1, 3, 0)];
        let before = shape(rows.clone());
        // Attempt 2 comes back: with an answer for the first step, and one that builds on it.
        rows.extend([answer(2, 0, None), answer(2, 1, Some(2)), outcome(2, 1, 2, 0)]);
        assert_eq!(shape(rows.clone()), before);
        rows.push(outcome(1, 0, 1, 0));
        assert_eq!(shape(rows)[0], (1, vec![(0, "1".to_owned())]));
    }

    #[test]
    fn what_followers_have_seen_is_not_said_again() {
        let rows = vec![
            answer(1, 0, None),
            outcome(1, 0, 1, 0),
            outcome(2, 0, 1, 1),
            answer(3, 1, Some(1)),
        ];
        let said: Vec<(bool, bool)> = chain(rows, 2)
            .iter()
            .map(|step| (step.is_said, step.is_done_said))
            .collect();
        assert_eq!(said, [(true, true), (false, false)]);
        assert!(chain(Vec::new(), 0).is_empty());
    }
}
