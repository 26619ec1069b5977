//! What a program said and did, as a turn's events and messages.

use common::clock::Clock;
use common::ids::JobId;
use common::message::{MISSING_RESULT, Message, Part, Role};

use super::super::native::{ToolCall, ToolOutcome, TurnSink, cut};

/// Bytes of texts, calls and results that a turn's messages hold. What follows is streamed and not kept.
const KEPT_MAX: usize = 4 << 20;

/// Bytes of one tool's output that are kept: head and tail.
const TOOL_OUTPUT_MAX: usize = 64 << 10;

/// Most tool calls that are kept.
const CALLS_MAX: usize = 2_000;

/// A turn's messages while they are made. A call that is known already, or a result of a call that is not, is left out,
/// and at the end every call has a result; a program that speaks between its calls and their results has its history
/// put in order by [`common::message::repair`] when a model is to read it.
pub(super) struct Transcript<'a> {
    sink: &'a dyn TurnSink,
    clock: &'a Clock,
    job_id: JobId,
    parts: Vec<Part>,
    results: Vec<Part>,
    messages: Vec<Message>,
    calls: Vec<String>,
    open: Vec<String>,
    kept: usize,
    dropped: usize,
}

impl<'a> Transcript<'a> {
    pub(super) fn new(sink: &'a dyn TurnSink, clock: &'a Clock, job_id: JobId) -> Self {
        Self {
            sink,
            clock,
            job_id,
            parts: Vec::new(),
            results: Vec::new(),
            messages: Vec::new(),
            calls: Vec::new(),
            open: Vec::new(),
            kept: 0,
            dropped: 0,
        }
    }

    /// More of the answer, streamed on.
    pub(super) fn text(&mut self, piece: &str) {
        if !piece.is_empty() {
            self.sink.text_delta(piece);
            self.keep_text(piece);
        }
    }

    /// More of the answer that was streamed on before.
    pub(super) fn keep_text(&mut self, piece: &str) {
        if !self.keeps(piece.len()) {
            return;
        }
        self.begin_answer();
        match self.parts.last_mut() {
            Some(Part::Text { text }) => text.push_str(piece),
            _ => self.parts.push(Part::text(piece)),
        }
    }

    /// More of the reasoning, streamed on.
    pub(super) fn reasoning(&mut self, piece: &str) {
        if !piece.is_empty() {
            self.sink.reasoning_delta(piece);
            self.keep_reasoning(piece);
        }
    }

    /// More of the reasoning that was streamed on before.
    pub(super) fn keep_reasoning(&mut self, piece: &str) {
        if !self.keeps(piece.len()) {
            return;
        }
        self.begin_answer();
        match self.parts.last_mut() {
            Some(Part::Reasoning { text, .. }) => text.push_str(piece),
            _ => self.parts.push(Part::Reasoning {
                text: piece.to_owned(),
                signature: None,
                redacted: None,
                provider: None,
            }),
        }
    }

    /// A tool begins.
    pub(super) fn tool_call(&mut self, call: ToolCall) {
        let bytes = call.name.len() + call.input.to_string().len();
        if self.calls.contains(&call.id) || self.calls.len() >= CALLS_MAX || !self.keeps(bytes) {
            return;
        }
        self.sink.tool_started(&call);
        self.begin_answer();
        self.calls.push(call.id.clone());
        self.open.push(call.id.clone());
        let ToolCall { id, name, input } = call;
        self.parts.push(Part::ToolCall { id, name, input });
    }

    /// A tool that has begun printed something.
    pub(super) fn tool_output(&self, id: &str, text: &str) {
        if self.open.iter().any(|open| open == id) {
            self.sink.tool_output(id, text);
        }
    }

    /// A tool ended.
    pub(super) fn tool_result(&mut self, id: &str, outcome: &ToolOutcome) {
        let Some(at) = self.open.iter().position(|open| open == id) else {
            return;
        };
        self.open.remove(at);
        let output = cut(&outcome.output, TOOL_OUTPUT_MAX);
        let is_error = outcome.is_error;
        self.sink.tool_finished(
            id,
            &ToolOutcome {
                output: output.clone(),
                is_error,
            },
        );
        // A result is kept whatever it takes, or its call would have none; it is cut and calls are counted.
        self.kept += output.len();
        self.end_answer();
        self.results.push(Part::ToolResult {
            tool_call_id: id.to_owned(),
            is_error,
            output,
        });
    }

    /// The program was told this and goes on with it: it stands between what it said before and what it says now.
    pub(super) fn heard(&mut self, message: Message) {
        self.end_answer();
        self.end_results();
        let message = Message {
            job_id: Some(self.job_id),
            ..message
        };
        self.sink.message(&message);
        self.messages.push(message);
    }

    /// Something that a person may want to know.
    pub(super) fn status(&self, phase: &str, detail: &str) {
        self.sink.status(phase, Some(detail));
    }

    /// The messages, and the text of the last answer. `note` says why it ended, when it did not end well.
    pub(super) fn finish(mut self, note: Option<&str>) -> (Vec<Message>, String) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.begin_answer();
            self.parts.push(Part::Status {
                text: format!("{dropped} bytes were left out"),
            });
        }
        for id in std::mem::take(&mut self.open) {
            self.end_answer();
            self.results.push(Part::ToolResult {
                tool_call_id: id,
                is_error: true,
                output: MISSING_RESULT.to_owned(),
            });
        }
        if let Some(note) = note {
            self.begin_answer();
            self.parts.push(Part::Status { text: note.to_owned() });
        }
        self.end_answer();
        self.end_results();
        let answers = self
            .messages
            .iter()
            .rev()
            .filter(|message| message.role == Role::Assistant);
        let text = answers.map(Message::text).find(|text| !text.is_empty());
        (self.messages, text.unwrap_or_default())
    }

    fn keeps(&mut self, bytes: usize) -> bool {
        if self.kept + bytes > KEPT_MAX {
            self.dropped += bytes;
            return false;
        }
        self.kept += bytes;
        true
    }

    /// Results that are there belong before what the program says now.
    fn begin_answer(&mut self) {
        self.end_results();
    }

    fn end_answer(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        self.say(Role::Assistant, parts);
    }

    fn end_results(&mut self) {
        let results = std::mem::take(&mut self.results);
        self.say(Role::User, results);
    }

    fn say(&mut self, role: Role, mut parts: Vec<Part>) {
        parts.retain(|part| part.as_text().is_none_or(|text| !text.trim().is_empty()));
        if parts.is_empty() {
            return;
        }
        let message = Message {
            job_id: Some(self.job_id),
            ..Message::new(role, parts, self.clock.now())
        };
        self.sink.message(&message);
        self.messages.push(message);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use common::job::event::EventBody;
    use serde_json::json;

    use super::super::super::native::EventSink;
    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall {
            id: id.to_owned(),
            name: "bash".to_owned(),
            input: json!({}),
        }
    }

    /// What `tell` makes: the events' names, the messages as (role, number of parts), the text.
    fn told(note: Option<&str>, tell: impl FnOnce(&mut Transcript<'_>)) -> (Vec<&'static str>, Vec<Message>, String) {
        let said = Mutex::new(Vec::new());
        let sink = EventSink::new(|body: EventBody| said.lock().unwrap().push(body.name()));
        let clock = Clock::system();
        let mut transcript = Transcript::new(&sink, &clock, JobId::new());
        tell(&mut transcript);
        let (messages, text) = transcript.finish(note);
        (said.into_inner().unwrap(), messages, text)
    }

    fn shape(messages: &[Message]) -> Vec<(Role, usize)> {
        messages
            .iter()
            .map(|message| (message.role, message.parts.len()))
            .collect()
    }

    #[test]
    fn an_answer_with_tools_becomes_messages_in_turn() {
        let (said, messages, text) = told(None, |it| {
            it.reasoning("hm");
            it.text("let ");
            it.text("me");
            it.tool_call(call("a"));
            it.tool_call(call("b"));
            it.tool_output("a", "x");
            it.tool_result("a", &ToolOutcome::ok("x"));
            it.tool_result("b", &ToolOutcome::error("y"));
            it.text("done");
        });
        assert_eq!(
            shape(&messages),
            [(Role::Assistant, 4), (Role::User, 2), (Role::Assistant, 1)]
        );
        let mut history = vec![Message::user("x", Clock::system().now())];
        history.extend(messages);
        assert_eq!(common::message::repair(history.clone()), history);
        assert_eq!(text, "done");
        assert_eq!(
            said,
            [
                "reasoning.delta",
                "message.delta",
                "message.delta",
                "tool.started",
                "tool.started",
                "tool.output",
                "tool.finished",
                "message",
                "tool.finished",
                "message.delta",
                "message",
                "message"
            ]
        );
    }

    #[test]
    fn what_does_not_belong_together_is_left_out_and_open_calls_end() {
        let (said, messages, _) = told(Some("cancelled"), |it| {
            it.tool_result("never", &ToolOutcome::ok("x"));
            it.tool_output("never", "x");
            it.tool_call(call("a"));
            it.tool_call(call("a"));
        });
        assert_eq!(
            shape(&messages),
            [(Role::Assistant, 1), (Role::User, 1), (Role::Assistant, 1)]
        );
        assert_eq!(said.iter().filter(|name| name.starts_with("tool.")).count(), 1);
        let note = Part::Status {
            text: "cancelled".to_owned(),
        };
        assert_eq!(messages[2].parts, [note]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (_, messages, text) = told(None, |it| {
            let piece = "x".repeat(1 << 20);
            for _ in 0..10 {
                it.text(&piece);
            }
        });
        assert_eq!(text.len(), KEPT_MAX);
        assert_eq!(shape(&messages), [(Role::Assistant, 2)]);
    }

    #[test]
    fn silence_is_no_message() {
        let (_, messages, text) = told(None, |it| it.text(" \n"));
        assert!(messages.is_empty() && text.is_empty());
    }
}
