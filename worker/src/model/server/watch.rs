//! Watching the bytes of an answer: they must come, and they must end.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use super::Bytestream;
use crate::model::Error;
use crate::model::error::Phase;

/// Bytes of an answer that are read; a server that sends more is broken or hostile.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Passes the bytes on as they come, and ends with an error when they stop coming or never stop. `first` says until when
/// the first must be there, and what it is when it is not.
pub(super) fn watch(bytes: Bytestream, first: (Instant, Error), silence: Duration) -> Bytestream {
    let start = (Some(bytes), Some(first), 0_usize);
    let watched = stream::unfold(start, move |(bytes, first, read)| async move {
        let mut bytes = bytes?;
        let (deadline, late) = first.unwrap_or_else(|| {
            let (phase, limit) = (Phase::NextByte, silence);
            (Instant::now() + silence, Error::Timeout { phase, limit })
        });
        match timeout_at(deadline, bytes.next()).await {
            Err(_elapsed) => Some((Err(late), (None, None, read))),
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((Err(error), (None, None, read))),
            Ok(Some(Ok(chunk))) => {
                let read = read.saturating_add(chunk.len());
                if read > ANSWER_BYTES_MAX {
                    let what = format!("more than {ANSWER_BYTES_MAX} bytes");
                    return Some((Err(Error::Malformed { what }), (None, None, read)));
                }
                Some((Ok(chunk), (Some(bytes), None, read)))
            }
        }
    });
    watched.boxed()
}
