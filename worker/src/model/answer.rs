//! Putting the events of one answer together to the parts of a message.

use common::json::{DEPTH_MAX, is_deep};
use common::message::{Part, Usage};
use serde_json::{Value, json};

use super::ledger::BYTES_PER_TOKEN;
use super::{ModelEvent, StopReason};

/// An answer while it comes in.
#[derive(Debug)]
pub struct Answer {
    provider: String,
    blocks: Vec<Block>,
    usage: Usage,
    is_counted: bool,
    input_bytes: u64,
    bytes: u64,
    stop_reason: Option<StopReason>,
}

/// A part while it comes in.
#[derive(Debug)]
enum Block {
    Text(String),
    Reasoning {
        text: String,
        proof: Option<Proof>,
    },
    Call {
        index: u32,
        id: String,
        name: String,
        json: String,
        is_whole: bool,
    },
}

/// What makes the provider recognise its reasoning.
#[derive(Debug, Default)]
struct Proof {
    signature: Option<String>,
    redacted: Option<String>,
}

/// An answer that is over, whole or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Its parts, in order. The inputs of its tool calls are always objects.
    pub parts: Vec<Part>,
    /// The calls among the parts whose input the model got wrong: (id, what is wrong).
    pub faults: Vec<(String, String)>,
    /// What the call used.
    pub usage: Usage,
    /// Why it ended; none when it broke off.
    pub stop_reason: Option<StopReason>,
}

impl Answer {
    /// Nothing yet, from `provider`.
    pub fn new(provider: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            blocks: Vec::new(),
            usage: Usage::default(),
            is_counted: false,
            input_bytes: 0,
            bytes: 0,
            stop_reason: None,
        }
    }

    /// The same, to a request of so many bytes: what nobody counts is estimated from them.
    #[must_use]
    pub fn asked_with(self, input_bytes: u64) -> Self {
        Self { input_bytes, ..self }
    }

    /// Whether anything came, or was counted.
    pub fn is_begun(&self) -> bool {
        self.is_counted || self.bytes > 0
    }

    /// Takes in the next event.
    pub fn push(&mut self, event: ModelEvent) {
        match event {
            ModelEvent::TextDelta { text } => {
                self.count(&text);
                match self.blocks.last_mut() {
                    Some(Block::Text(so_far)) => so_far.push_str(&text),
                    _ => self.blocks.push(Block::Text(text)),
                }
            }
            ModelEvent::ReasoningDelta { text } => {
                self.count(&text);
                self.open_reasoning().0.push_str(&text);
            }
            ModelEvent::ReasoningEnd { signature, redacted } => {
                *self.open_reasoning().1 = Some(Proof { signature, redacted });
            }
            ModelEvent::ToolCallStart { index, id, name } => {
                self.count(&name);
                self.blocks.push(Block::Call {
                    index,
                    id,
                    name,
                    json: String::new(),
                    is_whole: false,
                });
            }
            ModelEvent::ToolCallDelta { index, json: piece } => {
                self.count(&piece);
                if let Some((json, _)) = self.open_call(index) {
                    json.push_str(&piece);
                }
            }
            ModelEvent::ToolCallEnd { index } => {
                if let Some((_, is_whole)) = self.open_call(index) {
                    *is_whole = true;
                }
            }
            ModelEvent::Usage(snapshot) => {
                self.is_counted = true;
                self.usage.merge_snapshot(&snapshot);
            }
            ModelEvent::End { stop_reason } => self.stop_reason = Some(stop_reason),
        }
    }

    /// The answer as far as it came. Calls that were not whole are left out, reasoning that was not is without proof,
    /// and what the provider had no time to count is estimated.
    pub fn finish(self) -> Finished {
        let usage = self.usage();
        let is_cut = self.stop_reason == Some(StopReason::MaxTokens);
        let last = self.blocks.len().saturating_sub(1);
        let mut parts = Vec::with_capacity(self.blocks.len());
        let mut faults = Vec::new();
        for (at, block) in self.blocks.into_iter().enumerate() {
            match block {
                Block::Text(text) => parts.push(Part::Text { text }),
                Block::Reasoning { text, proof } => {
                    let Proof { signature, redacted } = proof.unwrap_or_default();
                    let provider = (signature.is_some() || redacted.is_some()).then(|| self.provider.clone());
                    parts.push(Part::Reasoning {
                        text,
                        signature,
                        redacted,
                        provider,
                    });
                }
                Block::Call { is_whole: false, .. } => {}
                Block::Call { id, name, json, .. } => {
                    let input = if is_cut && at == last {
                        parse_cut(&json)
                    } else {
                        parse_input(&json)
                    };
                    let input = input.unwrap_or_else(|fault| {
                        faults.push((id.clone(), fault));
                        json!({ "unreadable_input": json })
                    });
                    parts.push(Part::ToolCall { id, name, input });
                }
            }
        }
        Finished {
            parts,
            faults,
            usage,
            stop_reason: self.stop_reason,
        }
    }

    /// What the call used as far as it came: what the provider reported, and an estimate of what it did not.
    pub fn usage(&self) -> Usage {
        let mut usage = self.usage;
        let estimate = self.bytes.div_ceil(BYTES_PER_TOKEN);
        if (self.stop_reason.is_none() || !self.is_counted) && usage.output_tokens < estimate {
            usage.output_tokens = estimate;
            usage.estimated = true;
        }
        if !self.is_counted && self.input_bytes > 0 {
            usage.input_tokens = self.input_bytes.div_ceil(BYTES_PER_TOKEN);
            usage.estimated = true;
        }
        usage
    }

    fn count(&mut self, text: &str) {
        self.bytes = self.bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
    }

    fn open_reasoning(&mut self) -> (&mut String, &mut Option<Proof>) {
        if !matches!(self.blocks.last(), Some(Block::Reasoning { proof: None, .. })) {
            self.blocks.push(Block::Reasoning {
                text: String::new(),
                proof: None,
            });
        }
        match self.blocks.last_mut() {
            Some(Block::Reasoning { text, proof }) => (text, proof),
            _ => unreachable!("a reasoning block was pushed when there was none"),
        }
    }

    fn open_call(&mut self, wanted: u32) -> Option<(&mut String, &mut bool)> {
        self.blocks.iter_mut().rev().find_map(|block| match block {
            Block::Call {
                index, json, is_whole, ..
            } if *index == wanted && !*is_whole => Some((json, is_whole)),
            _ => None,
        })
    }
}

/// A call's input. A model may leave out an empty one.
fn parse_input(json: &str) -> Result<Value, String> {
    if json.trim().is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_str(json) {
        Ok(input) if is_deep(&input) => Err(format!("the input has more than {DEPTH_MAX} levels")),
        Ok(input @ Value::Object(_)) => Ok(input),
        Ok(_) => Err("the input is not a JSON object".to_owned()),
        Err(error) => Err(format!("the input is not valid JSON: {error}")),
    }
}

/// The input of the last call of an answer that has all the tokens that it may have: nothing at all is no empty one.
fn parse_cut(json: &str) -> Result<Value, String> {
    let whole = parse_input(json).ok().filter(|_| !json.trim().is_empty());
    whole.ok_or_else(|| {
        "the answer has all the tokens that it may have, and ends within this call: say less at once".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(events: Vec<ModelEvent>) -> Finished {
        let mut answer = Answer::new("anthropic");
        for event in events {
            answer.push(event);
        }
        answer.finish()
    }

    fn text(text: &str) -> ModelEvent {
        ModelEvent::TextDelta { text: text.to_owned() }
    }

    fn call(index: u32, json: &str) -> Vec<ModelEvent> {
        vec![
            ModelEvent::ToolCallStart {
                index,
                id: format!("c{index}"),
                name: "bash".to_owned(),
            },
            ModelEvent::ToolCallDelta {
                index,
                json: json.to_owned(),
            },
        ]
    }

    fn end(stop_reason: StopReason) -> ModelEvent {
        ModelEvent::End { stop_reason }
    }

    #[test]
    fn calls_that_are_written_in_turns_are_kept_apart() {
        let piece = |index, json: &str| ModelEvent::ToolCallDelta {
            index,
            json: json.to_owned(),
        };
        let mut events = call(1, "{\"a\":");
        events.extend(call(2, "{\"b\":"));
        events.extend([piece(1, "1}"), piece(2, "2}")]);
        events.extend([
            ModelEvent::ToolCallEnd { index: 2 },
            ModelEvent::ToolCallEnd { index: 1 },
        ]);
        events.push(end(StopReason::ToolUse));
        let finished = answer(events);
        let inputs: Vec<&Value> = finished
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::ToolCall { input, .. } => Some(input),
                _ => None,
            })
            .collect();
        assert_eq!(inputs, [&json!({"a": 1}), &json!({"b": 2})]);
    }

    #[test]
    fn input_that_is_no_object_is_kept_and_named() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100), "]".repeat(100));
        for (wrong, what) in [
            ("{\"command\": ", "not valid JSON"),
            ("[1]", "not a JSON object"),
            (&deep, "more than 64 levels"),
        ] {
            let mut events = call(0, wrong);
            events.extend([ModelEvent::ToolCallEnd { index: 0 }, end(StopReason::ToolUse)]);
            let finished = answer(events);
            assert_eq!(finished.faults.len(), 1);
            assert!(finished.faults[0].1.contains(what), "{:?}", finished.faults);
            let expected = Part::ToolCall {
                id: "c0".to_owned(),
                name: "bash".to_owned(),
                input: json!({"unreadable_input": wrong}),
            };
            assert_eq!(finished.parts, [expected]);
        }
    }

    #[test]
    fn a_call_that_is_cut_at_the_most_tokens_is_said_to_be() {
        let cut = |json: &str| {
            let mut events = call(0, "");
            events.extend(call(1, json));
            events.extend([0, 1].map(|index| ModelEvent::ToolCallEnd { index }));
            events.push(end(StopReason::MaxTokens));
            answer(events).faults
        };
        for json in ["", "{\"path\": \"a\", \"content\": \"so f"] {
            let faults = cut(json);
            assert!(
                matches!(&faults[..], [(id, what)] if id == "c1" && what.contains("say less at once")),
                "{faults:?}"
            );
        }
        assert_eq!(cut("{\"path\": \"a\"}"), [], "it was whole");
    }

    #[test]
    fn an_answer_that_broke_off_keeps_its_text_leaves_out_the_open_call_and_is_estimated() {
        let mut events = vec![ModelEvent::Usage(Usage {
            input_tokens: 9,
            output_tokens: 1,
            ..Usage::default()
        })];
        events.push(text("twelve bytes"));
        events.extend(call(1, "{\"comm"));
        let finished = answer(events);
        assert_eq!(finished.parts, [Part::text("twelve bytes")]);
        assert_eq!(finished.stop_reason, None);
        // 12 + "bash" + 6 bytes of JSON text.
        assert_eq!((finished.usage.input_tokens, finished.usage.output_tokens), (9, 6));
        assert!(finished.usage.estimated);
    }

    #[test]
    fn a_whole_answer_is_counted_by_its_provider_alone() {
        let usage = |output_tokens| {
            ModelEvent::Usage(Usage {
                input_tokens: 9,
                output_tokens,
                ..Usage::default()
            })
        };
        let finished = answer(vec![
            usage(1),
            text("a long text of many bytes"),
            usage(2),
            usage(2),
            end(StopReason::EndTurn),
        ]);
        assert_eq!(
            finished.usage,
            Usage {
                input_tokens: 9,
                output_tokens: 2,
                ..Usage::default()
            }
        );
    }

    #[test]
    fn reasoning_names_its_provider_only_with_proof() {
        let thought = || ModelEvent::ReasoningDelta { text: "hm".to_owned() };
        let signed = ModelEvent::ReasoningEnd {
            signature: Some("s".to_owned()),
            redacted: None,
        };
        let finished = answer(vec![thought(), signed, thought()]);
        let part = |signature: Option<&str>| Part::Reasoning {
            text: "hm".to_owned(),
            signature: signature.map(str::to_owned),
            redacted: None,
            provider: signature.map(|_| "anthropic".to_owned()),
        };
        assert_eq!(finished.parts, [part(Some("s")), part(None)]);
    }
}
