//! Server-sent events, read from bytes as they come.
//!
//! Each byte is looked at once, however the stream is cut into pieces, so that a large event costs no more than its
//! size. Comments (the heartbeat) only show that the stream is alive and are dropped here.

use std::collections::VecDeque;
use std::time::Duration;

/// A line longer than this is an error: results are capped far below it.
const LINE_BYTES_MAX: usize = 64 << 20;

/// One event as it stood on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The last `id` that the stream has named, if any.
    pub(super) id: Option<String>,
    pub(super) event: String,
    pub(super) data: String,
}

/// The line longer than [`LINE_BYTES_MAX`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong(pub(super) usize);

/// Turns bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    began: bool,
    id: Option<String>,
    event: String,
    data: Option<String>,
    /// The server's latest `retry:`, the pause before a reconnect.
    pub(super) retry: Option<Duration>,
}

impl Parser {
    /// Takes in the next bytes and appends the frames that they complete.
    pub(super) fn push(&mut self, mut bytes: &[u8], frames: &mut VecDeque<Frame>) -> Result<(), LineTooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes.first() == Some(&b'\n') {
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return self.extend(bytes);
            };
            let (head, tail) = bytes.split_at(end);
            self.extend(head)?;
            self.after_cr = tail.first() == Some(&b'\r');
            bytes = tail.get(1..).unwrap_or_default();
            let line = std::mem::take(&mut self.line);
            self.end_line(&line, frames);
            // The buffer is kept for the next line.
            self.line = line;
            self.line.clear();
        }
        Ok(())
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        if self.line.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(LineTooLong(LINE_BYTES_MAX));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, line: &[u8], frames: &mut VecDeque<Frame>) {
        let mut line = line;
        if !std::mem::replace(&mut self.began, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if let Some(data) = self.data.take() {
                let id = self.id.clone();
                frames.push_back(Frame { id, event, data });
            }
            return;
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (line.get(..colon), line.get(colon + 1..)),
            None => (Some(line), None),
        };
        let value = value.unwrap_or_default();
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match name {
            Some(b"data") => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
                None => self.data = Some(value.into_owned()),
            },
            Some(b"event") => self.event = value.into_owned(),
            Some(b"id") if !value.contains('\0') => self.id = Some(value.into_owned()),
            Some(b"retry") => self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: &str, event: &str, data: &str) -> Frame {
        Frame {
            id: Some(id.to_owned()),
            event: event.to_owned(),
            data: data.to_owned(),
        }
    }

    fn parse(pieces: &[&[u8]]) -> (Vec<Frame>, Parser) {
        let mut parser = Parser::default();
        let mut frames = VecDeque::new();
        for piece in pieces {
            parser.push(piece, &mut frames).unwrap();
        }
        (frames.into(), parser)
    }

    const STREAM: &[u8] = b"retry: 2000\n\nid: 1\nevent: queued\ndata: {\"seq\":1}\n\n: hb\nid: 2\nevent: stdout\n\
                            data: one\ndata: two\n\n";

    #[test]
    fn the_way_a_stream_is_cut_makes_no_difference() {
        let expected = [frame("1", "queued", "{\"seq\":1}"), frame("2", "stdout", "one\ntwo")];
        for cut in 0..STREAM.len() {
            let (head, tail) = STREAM.split_at(cut);
            let (frames, parser) = parse(&[head, tail]);
            assert_eq!(frames, expected, "cut at {cut}");
            assert_eq!(parser.retry, Some(Duration::from_secs(2)));
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(parse(&bytes).0, expected);
    }

    #[test]
    fn all_three_line_ends_are_read() {
        for end in ["\n", "\r", "\r\n"] {
            let text = "\u{feff}id: 7\nevent: x\ndata: y\n\n".replace('\n', end);
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes).0, [frame("7", "x", "y")], "{end:?}");
        }
    }

    #[test]
    fn a_heartbeat_inside_an_event_does_not_end_it() {
        assert_eq!(
            parse(&[b"id: 1\n: hb\nevent: x\n: hb\ndata: y\n\n"]).0,
            [frame("1", "x", "y")]
        );
    }

    #[test]
    fn an_event_that_was_cut_off_is_not_reported() {
        assert_eq!(parse(&[b"id: 1\nevent: x\ndata: y\n"]).0, []);
    }

    #[test]
    fn empty_data_is_an_event_and_no_data_is_none() {
        assert_eq!(
            parse(&[b"id: 1\nevent: x\n\nid: 2\nevent: y\ndata:\n\n"]).0,
            [frame("2", "y", "")]
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        assert_eq!(
            parse(&[b"id: 1\nevent: x\ndata: a\xffb\n\n"]).0,
            [frame("1", "x", "a\u{fffd}b")]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let mut frames = VecDeque::new();
        let piece = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(parser.push(&piece, &mut frames), Ok(()));
        assert_eq!(parser.push(b"x", &mut frames), Err(LineTooLong(LINE_BYTES_MAX)));
    }
}
