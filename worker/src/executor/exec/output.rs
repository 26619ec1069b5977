//! A program's output: live events, and the text of the result.

use common::job::event::EventBody;

use super::super::text::Decoder;
use crate::events::{Say, Sink};
use crate::sandbox::{Channel, Output};

/// What a program printed.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
}

/// One of its streams.
#[derive(Debug, Default)]
pub(super) struct Stream {
    decoder: Decoder,
    pub(super) text: String,
}

impl Stream {
    fn take(&mut self, bytes: &[u8]) -> Option<String> {
        let text = self.decoder.push(bytes);
        self.text.push_str(&text);
        (!text.is_empty()).then_some(text)
    }

    fn finish(&mut self) -> Option<String> {
        let text = self.decoder.finish();
        self.text.push_str(&text);
        (!text.is_empty()).then_some(text)
    }
}

impl Collected {
    pub(super) fn take(&mut self, output: Output, events: &Sink) {
        match output {
            Output::Stdout(bytes) => say(events, self.stdout.take(&bytes), |text| EventBody::Stdout { text }),
            Output::Stderr(bytes) => say(events, self.stderr.take(&bytes), |text| EventBody::Stderr { text }),
            Output::Cut { channel, dropped } => self.cut(channel, dropped, events),
        }
    }

    fn cut(&mut self, channel: Channel, dropped: u64, events: &Sink) {
        let (stream, name) = match channel {
            Channel::Stdout => (&mut self.stdout, "stdout"),
            Channel::Stderr => (&mut self.stderr, "stderr"),
        };
        let rest = stream.finish();
        let notice = format!("\n[{dropped} bytes left out]\n");
        stream.text.push_str(&notice);
        let text = rest.unwrap_or_default() + &notice;
        match channel {
            Channel::Stdout => events.say(EventBody::Stdout { text }),
            Channel::Stderr => events.say(EventBody::Stderr { text }),
        }
        let detail = Some(format!("{dropped} bytes of {name} were left out"));
        events.say(EventBody::Status {
            phase: "output_cut".to_owned(),
            detail,
        });
    }

    pub(super) fn finish(&mut self, events: &Sink) {
        say(events, self.stdout.finish(), |text| EventBody::Stdout { text });
        say(events, self.stderr.finish(), |text| EventBody::Stderr { text });
    }
}

fn say(events: &Sink, text: Option<String>, body: impl Fn(String) -> EventBody) {
    if let Some(text) = text {
        events.say(body(text));
    }
}
