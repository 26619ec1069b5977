//! A key, taken out of everything that its server says.
//!
//! Some servers repeat the key that they are called with: in errors of any status, in a header, in the middle of a stream.
//! What they say goes on to events, logs and sandboxes, so it is taken out where it comes in.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use reqwest::header::{HeaderMap, HeaderValue};

use super::Bytestream;

/// What stands where it stood.
const STAND_IN: &str = "[key]";

/// A shorter key is a word such as `ollama`, for a server that asks for none, and may be in any answer.
const BYTES_MIN: usize = 12;

/// The key of a server; none where there is nothing to take out. Cheap to clone.
#[derive(Clone)]
pub(super) struct Unsaid(Option<Arc<[u8]>>);

impl Unsaid {
    pub(super) fn new(key: Option<&str>) -> Self {
        let key = key.filter(|key| key.len() >= BYTES_MIN);
        Self(key.map(|key| key.as_bytes().into()))
    }

    /// Takes it out of headers: a value that holds it is replaced whole.
    pub(super) fn clean(&self, headers: &mut HeaderMap) {
        let Some(key) = &self.0 else { return };
        for value in headers.values_mut() {
            if place_of(key, value.as_bytes()).is_some() {
                *value = HeaderValue::from_static(STAND_IN);
            }
        }
    }

    /// Takes it out of bytes as they come. They go on at once, but for an end that may be the beginning of the key.
    pub(super) fn cleaned(&self, bytes: Bytestream) -> Bytestream {
        let Some(key) = &self.0 else { return bytes };
        let start = Cleaner {
            key: Arc::clone(key),
            held: Bytes::new(),
        };
        let cleaned = stream::unfold(Some((bytes, start)), |state| async move {
            let (mut bytes, mut cleaner) = state?;
            loop {
                let clean = match bytes.next().await {
                    Some(Ok(chunk)) => cleaner.push(chunk),
                    Some(Err(error)) => return Some((Err(error), Some((bytes, cleaner)))),
                    None if cleaner.held.is_empty() => return None,
                    None => return Some((Ok(cleaner.held), None)),
                };
                if !clean.is_empty() {
                    return Some((Ok(clean), Some((bytes, cleaner))));
                }
            }
        });
        cleaned.boxed()
    }
}

struct Cleaner {
    key: Arc<[u8]>,
    /// What came last, when the key may begin with it.
    held: Bytes,
}

impl Cleaner {
    /// What of the bytes so far can go on.
    fn push(&mut self, chunk: Bytes) -> Bytes {
        let held = std::mem::take(&mut self.held);
        let mut rest = if held.is_empty() {
            chunk
        } else {
            [held, chunk].concat().into()
        };
        let mut clean = BytesMut::new();
        while let Some(at) = place_of(&self.key, &rest) {
            clean.extend_from_slice(&rest.split_to(at));
            clean.extend_from_slice(STAND_IN.as_bytes());
            drop(rest.split_to(self.key.len()));
        }
        self.held = rest.split_off(rest.len() - begun(&self.key, &rest));
        if clean.is_empty() {
            return rest;
        }
        clean.extend_from_slice(&rest);
        clean.freeze()
    }
}

/// Where the key stands in some bytes.
fn place_of(key: &[u8], bytes: &[u8]) -> Option<usize> {
    let first = key.first()?;
    let mut from = 0;
    loop {
        let rest = bytes.get(from..)?;
        let at = rest.iter().position(|byte| byte == first)?;
        if rest.get(at..)?.starts_with(key) {
            return Some(from + at);
        }
        from += at + 1;
    }
}

/// How many bytes at the end may be the beginning of the key. An event ends with a new line, which is in none.
fn begun(key: &[u8], bytes: &[u8]) -> usize {
    if bytes.last().is_none_or(|last| !key.contains(last)) {
        return 0;
    }
    let lengths = (1..key.len()).rev();
    let is_begun = |len: &usize| key.get(..*len).is_some_and(|begin| bytes.ends_with(begin));
    lengths.into_iter().find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::model::Error;

    fn cleaned(key: &str, chunks: &[&[u8]]) -> Vec<u8> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let cleaned = Unsaid::new(Some(key)).cleaned(stream::iter(chunks).boxed());
        let all: Vec<Result<Bytes, Error>> = cleaned.collect().now_or_never().unwrap();
        all.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat()
    }

    proptest! {
        /// A key of few letters, so that its beginning comes often.
        #[test]
        fn the_key_is_taken_out_however_the_bytes_come(text in "(ab|aab|c|aabaabaabaac){0,12}", one in 0_usize..60, other in 0_usize..60) {
            let key = "aabaabaabaac";
            let bytes = text.as_bytes();
            let (one, other) = (one.min(other).min(bytes.len()), one.max(other).min(bytes.len()));
            let pieces = [&bytes[..one], &bytes[one..other], &bytes[other..]];
            let clean = String::from_utf8(cleaned(key, &pieces)).unwrap();
            prop_assert_eq!(clean, text.replace(key, STAND_IN));
        }
    }

    #[test]
    fn events_go_on_as_they_came() {
        let mut cleaner = Cleaner {
            key: b"sk-0123456789"[..].into(),
            held: Bytes::new(),
        };
        let event = Bytes::from_static(b"data: {\"text\":\"ask-01\"}\n\n");
        let passed = cleaner.push(event.clone());
        assert_eq!((passed.as_ptr(), passed.len()), (event.as_ptr(), event.len()));
        assert_eq!(cleaner.push(Bytes::from_static(b"ask-01")), "a");
        assert_eq!(cleaner.push(Bytes::from_static(b"2")), "");
        assert_eq!(cleaner.push(Bytes::from_static(b"!")), "sk-012!");
    }

    #[test]
    fn a_word_for_a_server_without_a_key_is_said() {
        assert_eq!(cleaned("ollama", &[b"I am ollama"]), b"I am ollama");
    }
}
