//! What a `command` program prints: an answer as it is, or events, one a line.
//!
//! A program that prints `{"type":"hothouse","version":1}` as its first line prints events from then on; anything else
//! is text, whatever it looks like. So no program's answer is ever taken for events by accident.

use common::job::event::EventBody;
use common::json::is_deep;
use common::message::Usage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::native::{ToolCall, ToolOutcome};
use super::super::text::Decoder;
use super::transcript::Transcript;
use crate::events::{Say, Sink};
use crate::lines::Lines;

/// The first line of a program that prints events is not longer.
const GREETING_MAX: usize = 256;

/// One line of a program that prints events.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    /// More of the answer.
    Text { text: String },
    /// More of what was thought before it.
    Reasoning { text: String },
    /// A tool begins.
    ToolCall {
        id: String,
        name: String,
        #[serde(default)]
        input: Value,
    },
    /// A tool printed something.
    ToolOutput { id: String, text: String },
    /// A tool ended.
    ToolResult {
        id: String,
        output: String,
        #[serde(default)]
        is_error: bool,
    },
    /// What a call of a model used that did not go through the gateway. Shown, not counted: nobody saw it.
    Usage {
        model: String,
        #[serde(flatten)]
        usage: Usage,
    },
    /// Something that a person may want to know.
    Status {
        phase: String,
        #[serde(default)]
        detail: Option<String>,
    },
    /// Why the program fails; it is added to what its exit code says.
    Error { message: String },
}

impl Line {
    /// `None` when it is no event, or one that nobody could read back.
    fn read(line: &[u8]) -> Option<Self> {
        let line = serde_json::from_slice(line).ok()?;
        let is_readable = !matches!(&line, Self::ToolCall { input, .. } if is_deep(input));
        is_readable.then_some(line)
    }
}

/// A program's standard output as it comes.
#[derive(Debug, Default)]
pub(super) struct Answer {
    mode: Mode,
    complaint: Option<String>,
}

#[derive(Debug)]
enum Mode {
    /// Its first line is not whole.
    Unknown(Vec<u8>),
    Text(Decoder),
    Events(Lines),
}

impl Default for Mode {
    fn default() -> Self {
        Self::Unknown(Vec::new())
    }
}

impl Answer {
    /// Takes in the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8], transcript: &mut Transcript<'_>, events: &Sink) {
        match &mut self.mode {
            Mode::Text(decoder) => transcript.text(&decoder.push(bytes)),
            Mode::Events(lines) => {
                let complaint = &mut self.complaint;
                lines.push(bytes, |line| follow(line, complaint, transcript, events));
            }
            Mode::Unknown(first) => {
                first.extend_from_slice(bytes);
                let Some(mode) = mode(first) else { return };
                let first = std::mem::take(first);
                self.mode = mode;
                let rest = match &self.mode {
                    Mode::Events(_) => first.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1),
                    Mode::Text(_) | Mode::Unknown(_) => 0,
                };
                self.take(first.get(rest..).unwrap_or_default(), transcript, events);
            }
        }
    }

    /// Bytes are missing here.
    pub(super) fn cut(&mut self, dropped: u64, transcript: &mut Transcript<'_>, events: &Sink) {
        match &mut self.mode {
            Mode::Events(lines) => lines.cut(),
            Mode::Text(_) | Mode::Unknown(_) => transcript.text(&format!("\n[{dropped} bytes left out]\n")),
        }
        events.say(EventBody::Status {
            phase: "output_cut".to_owned(),
            detail: Some(format!("{dropped} bytes of stdout were left out")),
        });
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self, transcript: &mut Transcript<'_>, events: &Sink) {
        match &mut self.mode {
            Mode::Unknown(first) => transcript.text(&String::from_utf8_lossy(first)),
            Mode::Text(decoder) => transcript.text(&decoder.finish()),
            Mode::Events(lines) => {
                if let Some(last) = lines.finish() {
                    follow(&last, &mut self.complaint, transcript, events);
                }
            }
        }
    }

    /// What the program said of its failure.
    pub(super) fn complaint(self) -> Option<String> {
        self.complaint
    }
}

/// What the first bytes mean, as soon as they mean something.
fn mode(first: &[u8]) -> Option<Mode> {
    #[derive(Deserialize)]
    struct Greeting {
        #[serde(rename = "type")]
        kind: String,
        version: u32,
    }
    let text = || Some(Mode::Text(Decoder::default()));
    if !first.starts_with(b"{") {
        return if first.is_empty() { None } else { text() };
    }
    match first.iter().position(|byte| *byte == b'\n') {
        None if first.len() > GREETING_MAX => text(),
        None => None,
        Some(at) => {
            let line = first.get(..at).unwrap_or_default();
            let greeting = serde_json::from_slice::<Greeting>(line);
            if greeting.is_ok_and(|greeting| greeting.kind == "hothouse" && greeting.version == 1) {
                Some(Mode::Events(Lines::default()))
            } else {
                text()
            }
        }
    }
}

fn follow(line: &[u8], complaint: &mut Option<String>, transcript: &mut Transcript<'_>, events: &Sink) {
    if line.is_empty() {
        return;
    }
    let Some(line) = Line::read(line) else {
        // Libraries print to standard output, too: it belongs to the log and not to the answer.
        let text = String::from_utf8_lossy(line).into_owned() + "\n";
        return events.say(EventBody::Stdout { text });
    };
    match line {
        Line::Text { text } => transcript.text(&text),
        Line::Reasoning { text } => transcript.reasoning(&text),
        Line::ToolCall { id, name, input } => {
            let input = if input.is_object() {
                input
            } else {
                json!({"input": input})
            };
            transcript.tool_call(ToolCall { id, name, input });
        }
        Line::ToolOutput { id, text } => transcript.tool_output(&id, &text),
        Line::ToolResult { id, output, is_error } => {
            transcript.tool_result(&id, &ToolOutcome { output, is_error });
        }
        Line::Usage { model, usage } => {
            let mut usage = json!(usage);
            usage["model"] = model.into();
            usage["reported_by"] = "program".into();
            events.say(EventBody::Usage { usage });
        }
        Line::Status { phase, detail } => events.say(EventBody::Status { phase, detail }),
        Line::Error { message } => *complaint = Some(message),
    }
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    #[test]
    fn only_the_greeting_makes_events() {
        assert_matches!(mode(b""), None);
        assert_matches!(mode(b"{\"type\":\"hothouse\","), None);
        assert_matches!(
            mode(b"{\"type\":\"hothouse\",\"version\":1}\nrest"),
            Some(Mode::Events(_))
        );
        for text in [
            &b"h"[..],
            b"{\"type\":\"hothouse\",\"version\":2}\n",
            b"{\"type\":\"text\",\"text\":\"x\"}\n",
            b" {\"type\":\"hothouse\",\"version\":1}\n",
            &[b'{'; GREETING_MAX + 1],
        ] {
            assert_matches!(mode(text), Some(Mode::Text(_)), "{text:?}");
        }
    }

    #[test]
    fn lines_are_what_the_manual_says() {
        let line = |json: &str| serde_json::from_str::<Line>(json).unwrap();
        assert_eq!(
            line(r#"{"type":"tool_result","id":"a","output":"x"}"#),
            Line::ToolResult {
                id: "a".to_owned(),
                output: "x".to_owned(),
                is_error: false
            }
        );
        assert_matches!(
            line(r#"{"type":"usage","model":"a/b","output_tokens":3}"#),
            Line::Usage {
                usage: Usage {
                    output_tokens: 3,
                    input_tokens: 0,
                    ..
                },
                ..
            }
        );
        assert!(serde_json::from_str::<Line>(r#"{"type":"other"}"#).is_err());
        let call = |levels: usize| {
            let input = "[".repeat(levels) + &"]".repeat(levels);
            Line::read(format!(r#"{{"type":"tool_call","id":"a","name":"x","input":{input}}}"#).as_bytes())
        };
        assert!(call(60).is_some() && call(100).is_none(), "nobody could read it back");
    }
}
