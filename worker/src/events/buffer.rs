//! Between those who say something and the one who writes it: never waits, and is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use common::clock::Clock;
use common::job::event::EventBody;
use tokio::sync::Notify;

/// Most bytes that wait to be numbered. The writer takes them every 25 ms, so this is reached only by a job that prints
/// faster than memory is read, and then it is told what was left out.
const PENDING_MAX: usize = 8 << 20;

/// Most events that wait: half of what may be numbered without being written, and one less, for what is said of the rest.
const PENDING_EVENTS_MAX: usize = 4_999;

/// Most bytes that one event's text is joined to.
const JOIN_MAX: usize = 16 << 10;

/// The saying side of an attempt's log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sink {
    clock: Clock,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: VecDeque<Said>,
    bytes: usize,
    dropped: usize,
    closed: bool,
}

/// Something that was said, and when.
pub(super) type Said = (DateTime<Utc>, EventBody);

/// What was taken out at once.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) said: Vec<Said>,
    pub(super) closed: bool,
}

impl Sink {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            shared: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, body: EventBody) {
        self.push_at(self.clock.now(), body);
    }

    /// Says that the job's program runs, and has for so long: the word of it may have come late.
    pub fn say_running(&self, began_ago: Duration) {
        let ago = TimeDelta::from_std(began_ago).unwrap_or_default();
        let phase = "running".to_owned();
        self.push_at(self.clock.now() - ago, EventBody::Status { phase, detail: None });
    }

    fn push_at(&self, at: DateTime<Utc>, body: EventBody) {
        let size = size(&body);
        let mut state = self.lock();
        if state.closed {
            return;
        }
        if state.bytes + size > PENDING_MAX || state.pending.len() >= PENDING_EVENTS_MAX {
            state.dropped += size;
            return;
        }
        state.bytes += size;
        let joined = state
            .pending
            .back()
            .filter(|(_, last)| self::size(last) + size <= JOIN_MAX)
            .and_then(|(since, last)| Some((*since, last.joined(&body)?)));
        if let Some(joined) = joined {
            state.pending.pop_back();
            state.pending.push_back(joined);
        } else {
            state.pending.push_back((at, body));
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.shared.changed.notify_one();
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes everything that waits.
    pub(super) fn take(&self) -> Taken {
        let mut state = self.lock();
        let mut said: Vec<Said> = state.pending.drain(..).collect();
        state.bytes = 0;
        if state.dropped > 0 {
            let detail = format!("{} bytes came faster than they could be kept", state.dropped);
            let phase = "log_truncated".to_owned();
            said.push((
                self.clock.now(),
                EventBody::Status {
                    phase,
                    detail: Some(detail),
                },
            ));
            state.dropped = 0;
        }
        Taken {
            said,
            closed: state.closed,
        }
    }

    /// Waits until something was pushed, or the sink is closed.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

/// About how many bytes an event takes.
pub(super) fn size(body: &EventBody) -> usize {
    const FRAME: usize = 96;
    FRAME
        + match body {
            EventBody::Stdout { text }
            | EventBody::Stderr { text }
            | EventBody::MessageDelta { text }
            | EventBody::ReasoningDelta { text }
            | EventBody::ToolOutput { text, .. } => text.len(),
            EventBody::Message { message: value }
            | EventBody::ToolStarted { input: value, .. }
            | EventBody::ToolFinished { output: value, .. }
            | EventBody::Usage { usage: value } => value.to_string().len(),
            _ => 0,
        }
}
