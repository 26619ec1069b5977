//! Events of a stream of server-sent events, each with exactly the bytes that it came in.

use bytes::{Bytes, BytesMut};

/// Longest event, bytes. A server that sends more is broken.
const FRAME_MAX: usize = 16 << 20;

/// Splits bytes into frames, the empty line after each counted.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pending: BytesMut,
    /// Bytes of `pending` that hold no end of a frame.
    seen: usize,
}

impl Frames {
    /// Takes in the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame. One that is longer than any may be is handed on in pieces.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let from = self.seen.saturating_sub(3);
        let rest = self.pending.get(from..).unwrap_or_default();
        let end = (0..rest.len()).find_map(|at| {
            let rest = rest.get(at..)?;
            [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"]
                .iter()
                .find(|end| rest.starts_with(end))
                .map(|end| from + at + end.len())
        });
        self.seen = self.pending.len();
        let len = end.or_else(|| (self.pending.len() > FRAME_MAX).then_some(self.pending.len()))?;
        self.seen = 0;
        Some(self.pending.split_to(len).freeze())
    }

    /// What is left when nothing more comes.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        self.seen = 0;
        let rest = self.pending.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }
}

/// The data of a frame; empty when it has none, as that of a comment.
pub(super) fn data(frame: &[u8]) -> String {
    let text = String::from_utf8_lossy(frame);
    let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
    let lines: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_byte_is_lost_and_frames_do_not_depend_on_pieces(text in "[a\r\n]{0,40}", cut in 0_usize..40) {
            let split = |pieces: &[&[u8]]| {
                let (mut frames, mut found) = (Frames::default(), Vec::new());
                for piece in pieces {
                    frames.push(piece);
                    while let Some(frame) = frames.next() { found.push(frame); }
                }
                found.extend(frames.finish());
                found
            };
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(split(&[bytes]).concat(), bytes);
            prop_assert_eq!(split(&[head, tail]).concat(), bytes);
        }
    }

    #[test]
    fn the_data_of_a_frame_is_read() {
        assert_eq!(data(b"event: x\ndata: {\"a\":\ndata:1}\n\n"), "{\"a\":\n1}");
        assert_eq!(data(b": ping\r\n\r\n"), "");
        let mut frames = Frames::default();
        frames.push(b"data: 1\n\ndata: 2\r\n\r\nda");
        assert_eq!(frames.next().unwrap(), "data: 1\n\n");
        assert_eq!(frames.next().unwrap(), "data: 2\r\n\r\n");
        assert_eq!(frames.next(), None);
    }
}
