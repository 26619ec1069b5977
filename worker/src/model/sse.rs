//! Bytes to events: server-sent events, whatever the chunks are that they come in.

use std::collections::VecDeque;

use bytes::Bytes;
use eventsource_stream::{EventStream, EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt, stream};

use super::wire::Decoder;
use super::{Error, ModelEvent};

struct State<S> {
    events: EventStream<S>,
    decoder: Decoder,
    ready: VecDeque<ModelEvent>,
}

/// The events in `bytes`. Ends after [`ModelEvent::End`] or the first error, and leaves bytes after that unread.
pub(super) fn decode<S>(bytes: S, decoder: Decoder) -> impl Stream<Item = Result<ModelEvent, Error>> + Send
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin,
{
    let start = State {
        events: bytes.eventsource(),
        decoder,
        ready: VecDeque::new(),
    };
    stream::unfold(Some(start), |state| async move {
        let mut state = state?;
        match next(&mut state).await {
            Ok(event) => Some((Ok(event), Some(state))),
            Err(None) => None,
            Err(Some(error)) => Some((Err(error), None)),
        }
    })
}

/// The next event; `Err(None)` when there is none.
async fn next<S>(state: &mut State<S>) -> Result<ModelEvent, Option<Error>>
where
    S: Stream<Item = Result<Bytes, Error>> + Send + Unpin,
{
    loop {
        if let Some(event) = state.ready.pop_front() {
            return Ok(event);
        }
        if state.decoder.is_over() {
            return Err(None);
        }
        match state.events.next().await {
            Some(Ok(event)) => state.ready.extend(state.decoder.event(&event.data)?),
            Some(Err(EventStreamError::Transport(error))) => return Err(Some(error)),
            Some(Err(error)) => {
                return Err(Some(Error::Malformed {
                    what: error.to_string(),
                }));
            }
            None => return Ok(state.decoder.end()?),
        }
    }
}
