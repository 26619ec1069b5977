//! Writing a job's event log: numbers, batches, Redis for those who follow, Postgres for good.
//!
//! The holder of the attempt numbers its events from the number of its `started`, which the claim took. Events are
//! flushed to Redis every 25 ms or 1 KiB, and written to Postgres every 256 KiB, 5 s or
//! [`UNWRITTEN_MAX`](common::job::event::UNWRITTEN_MAX) / 2 events, in batches with those of other attempts ([`Outlets`]). An attempt that says nothing costs nothing: there is
//! no log then, and its `started` is in its row.

mod buffer;
mod outlets;
mod writer;

use std::sync::Arc;

use common::job::event::{Event, EventBody};
use tokio::task::JoinHandle;

pub use buffer::Sink;
pub use outlets::Outlets;
use writer::Writer;
pub use writer::{LogTarget, Unwritten};

/// The log of one attempt.
#[derive(Debug)]
pub struct EventLog {
    sink: Sink,
    task: JoinHandle<Unwritten>,
}

impl EventLog {
    /// Begins the log of an attempt whose `started` event is given. Nothing is written until something is said.
    pub fn begin(target: LogTarget, started: Event, tracker: &tokio_util::task::TaskTracker) -> Self {
        let sink = Sink::new(target.clock.clone());
        let writer = Writer::new(target, started, sink.clone());
        Self {
            sink,
            task: tracker.spawn(writer.run()),
        }
    }

    /// Where the attempt says what happens.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// Ends the log: everything that was said is numbered, and what Postgres does not have is handed back to be
    /// written with the attempt's end.
    pub async fn end(self) -> Unwritten {
        self.sink.close();
        match self.task.await {
            Ok(unwritten) => unwritten,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Says an event.
pub trait Say {
    /// Says an event; never waits.
    fn say(&self, body: EventBody);
}

impl Say for Sink {
    fn say(&self, body: EventBody) {
        self.push(body);
    }
}

impl<S: Say> Say for Arc<S> {
    fn say(&self, body: EventBody) {
        (**self).say(body);
    }
}
