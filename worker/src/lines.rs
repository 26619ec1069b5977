//! Lines out of a program's output, each whole and none endless.

/// Longest line, bytes. What a program prints beyond it is no line of a protocol.
const LINE_MAX: usize = 16 << 20;

/// Splits bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pending: Vec<u8>,
    /// The line under way is longer than it may be.
    is_lost: bool,
}

impl Lines {
    /// Takes in the next bytes and hands on every line that is whole now, without its end. A line that is too long is
    /// left out.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) {
        while let Some(at) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(at);
            bytes = rest.get(1..).unwrap_or_default();
            self.keep(line);
            let line = std::mem::take(&mut self.pending);
            if !std::mem::take(&mut self.is_lost) {
                take(line.strip_suffix(b"\r").unwrap_or(&line));
            }
        }
        self.keep(bytes);
    }

    /// The last line, when it has no end.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        let last = std::mem::take(&mut self.pending);
        let is_lost = std::mem::take(&mut self.is_lost);
        (!is_lost && !last.is_empty()).then_some(last)
    }

    /// Bytes are missing: the line under way is worth nothing.
    pub(crate) fn cut(&mut self) {
        self.pending = Vec::new();
        self.is_lost = true;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.is_lost || self.pending.len() + bytes.len() > LINE_MAX {
            self.pending = Vec::new();
            self.is_lost = true;
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| found.push(String::from_utf8_lossy(line).into_owned()));
        }
        found.extend(lines.finish().map(|last| String::from_utf8_lossy(&last).into_owned()));
        found
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_they_come(text in "[ab\n]{0,40}", cuts in proptest::collection::vec(0_usize..8, 0..10)) {
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            pieces.push(rest);
            let expected: Vec<&str> = text.lines().collect();
            prop_assert_eq!(lines(&pieces), expected);
        }
    }

    #[test]
    fn a_line_that_is_too_long_or_cut_is_left_out_and_the_next_is_whole() {
        let long = vec![b'x'; LINE_MAX + 1];
        assert_eq!(
            lines(&[b"one\n", &long, b"x\r\ntwo\r\n", b"three"]),
            ["one", "two", "three"]
        );
        let mut cut = Lines::default();
        let mut found = Vec::new();
        cut.push(b"on", |line| found.push(line.to_vec()));
        cut.cut();
        cut.push(b"e\ntwo\n", |line| found.push(line.to_vec()));
        assert_eq!(found, [b"two"]);
    }
}
