//! Bytes of a program as text, piece by piece: a character that is split between two pieces stays whole.

/// Decodes one stream. What is not UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// The text of what is complete.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let complete = match std::str::from_utf8(&self.pending) {
            Ok(_) => self.pending.len(),
            // `error_len` is none when the end may be the beginning of a character.
            Err(_) => self.pending.len() - incomplete_tail(&self.pending),
        };
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// The text of what is left at the end.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// How many bytes at the end may be the beginning of a character: at most three.
fn incomplete_tail(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|back| {
            let tail = &bytes[bytes.len() - back..];
            std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_character_stays_whole() {
        let whole = "a€😀\0z".as_bytes();
        for cut in 0..=whole.len() {
            let mut decoder = Decoder::default();
            let text = decoder.push(&whole[..cut]) + &decoder.push(&whole[cut..]) + &decoder.finish();
            assert_eq!(text, "a€😀\0z", "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced_and_does_not_wait() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
        assert_eq!(decoder.push(b"\xe2\x82"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }
}
