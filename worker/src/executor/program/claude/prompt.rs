//! What the user says, as the command line is told it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::message::{Message, Part, Role};
use serde_json::{Value, json};

use crate::model::Attachment;

/// Bytes of the conversation so far that go in front of a prompt where there is no transcript.
const RECALL_MAX: usize = 200 << 10;

/// Bytes of images that fit into a line: of others it is told the name, and it can look at them itself.
const IMAGES_MAX: usize = 6 << 20;

/// What goes in front of a prompt that the program may remember.
const TAKEN_UP: &str = "This turn was interrupted and is taken up again. Where you see its beginning above, go on from \
                        there. The user's message was:";

/// What the program remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nothing.
    Nothing,
    /// The conversation before this turn.
    Before,
    /// The same, and perhaps the beginning of this turn, which another attempt has made.
    Begun,
}

/// What is said at the beginning of a turn: everything since the last answer, after what was said before where the program
/// does not remember it. `again` was said to the turn before this attempt.
pub(super) fn content(
    history: &[Message],
    again: &[Message],
    (memory, images): (Memory, &BTreeMap<String, Attachment>),
) -> Value {
    let answered = history.iter().rposition(|message| message.role == Role::Assistant);
    let (before, now) = history.split_at(answered.map_or(0, |at| at + 1));
    let mut said = Said::new(images);
    match memory {
        Memory::Nothing if !before.is_empty() => {
            let recalled = recall(before);
            said.text(&format!(
                "The conversation so far:\n\n{recalled}\nWhat follows is the user's next message."
            ));
        }
        Memory::Begun => said.text(TAKEN_UP),
        Memory::Nothing | Memory::Before => {}
    }
    let now = now.iter().filter(|message| message.role == Role::User);
    for message in now.chain(again) {
        said.message(message);
    }
    said.content()
}

/// What is said to a turn under way.
pub(super) fn words(message: &Message) -> Value {
    let none = BTreeMap::new();
    let mut said = Said::new(&none);
    said.message(message);
    said.content()
}

/// Blocks of a message.
struct Said<'a> {
    images: &'a BTreeMap<String, Attachment>,
    room: usize,
    text: String,
    blocks: Vec<Value>,
}

impl<'a> Said<'a> {
    fn new(images: &'a BTreeMap<String, Attachment>) -> Self {
        Self {
            images,
            room: IMAGES_MAX,
            text: String::new(),
            blocks: Vec::new(),
        }
    }

    fn text(&mut self, text: &str) {
        if !self.text.is_empty() && !text.is_empty() {
            self.text.push_str("\n\n");
        }
        self.text.push_str(text);
    }

    fn message(&mut self, message: &Message) {
        for part in &message.parts {
            match part {
                Part::Text { text } => self.text(text),
                Part::File { path, media_type, .. } => self.file(path, media_type.as_deref()),
                _ => {}
            }
        }
    }

    fn file(&mut self, path: &str, media_type: Option<&str>) {
        let image = self
            .images
            .get(path.trim_start_matches("./"))
            .or_else(|| self.images.get(path));
        match image.filter(|image| image.data.len() <= self.room) {
            Some(image) => {
                self.room -= image.data.len();
                self.end_text();
                let source = json!({"type": "base64", "media_type": image.media_type, "data": image.base64()});
                self.blocks.push(json!({"type": "image", "source": source}));
            }
            None => self.text(&Attachment::named(path, media_type)),
        }
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.blocks.push(json!({"type": "text", "text": text}));
        }
    }

    /// A text alone is said as a text.
    fn content(mut self) -> Value {
        if self.blocks.is_empty() {
            return self.text.into();
        }
        self.end_text();
        self.blocks.into()
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::DateTime;

    use super::*;

    fn said(role: Role, text: &str) -> Message {
        Message::new(role, vec![Part::text(text)], DateTime::UNIX_EPOCH)
    }

    fn prompt(history: &[Message], memory: Memory) -> String {
        let content = content(history, &[], (memory, &BTreeMap::new()));
        content.as_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_not_remembered_is_told() {
        let history = [
            said(Role::User, "first"),
            said(Role::Assistant, "answer"),
            said(Role::User, "second"),
        ];
        assert_eq!(prompt(&history, Memory::Before), "second");
        assert_eq!(prompt(&history[..1], Memory::Nothing), "first");
        let told = prompt(&history, Memory::Nothing);
        assert!(
            told.contains("User: first\n") && told.contains("Assistant: answer") && told.ends_with("\n\nsecond"),
            "{told}"
        );
        assert!(recall(&[said(Role::User, &"é".repeat(RECALL_MAX))]).len() <= RECALL_MAX);
    }

    #[test]
    fn what_came_too_late_for_the_turn_before_is_said_with_the_next() {
        let history = [
            said(Role::User, "first"),
            said(Role::Assistant, "answer"),
            said(Role::User, "and this"),
            said(Role::User, "second"),
        ];
        assert_eq!(prompt(&history, Memory::Before), "and this\n\nsecond");
        let again = [said(Role::User, "third")];
        let content = content(&history, &again, (Memory::Before, &BTreeMap::new()));
        assert_eq!(content, "and this\n\nsecond\n\nthird");
    }

    #[test]
    fn what_may_be_remembered_is_said_to_be_said_again() {
        let told = prompt(&[said(Role::User, "first")], Memory::Begun);
        assert!(
            told.starts_with("This turn was interrupted") && told.ends_with("\n\nfirst"),
            "{told}"
        );
    }

    #[test]
    fn images_are_shown_and_other_files_named() {
        let file = |path: &str| Part::File {
            path: path.to_owned(),
            media_type: None,
            bytes: None,
        };
        let parts = vec![Part::text("look"), file("./a.png"), file("b.csv"), file("large.png")];
        let message = Message::new(Role::User, parts, DateTime::UNIX_EPOCH);
        let image = |bytes: usize| Attachment {
            media_type: "image/png".to_owned(),
            data: Bytes::from(vec![1; bytes]),
        };
        let images = BTreeMap::from([
            ("a.png".to_owned(), image(3)),
            ("large.png".to_owned(), image(IMAGES_MAX)),
        ]);
        let content = content(&[message], &[], (Memory::Before, &images));
        assert_eq!(content[0], json!({"type": "text", "text": "look"}));
        assert_eq!(content[1]["source"]["data"], "AQEB");
        let named = content[2]["text"].as_str().unwrap();
        assert!(named.contains("b.csv") && named.contains("large.png"), "{named}");
        assert_eq!(content.as_array().unwrap().len(), 3);
    }
}
