//! What the programs of one attempt used of models.

use std::sync::{Arc, Mutex, PoisonError};

use common::message::Usage;

use crate::executor::native::{CallUsage, TurnSink};
use crate::model::ModelName;

/// The account of one attempt.
pub(super) struct Account {
    sink: Arc<dyn TurnSink>,
    state: Mutex<(u32, Usage)>,
}

impl Account {
    pub(super) fn new(sink: Arc<dyn TurnSink>) -> Self {
        Self {
            sink,
            state: Mutex::default(),
        }
    }

    /// Writes a call down; one that used nothing was none.
    pub(super) fn write(&self, model: &ModelName, usage: Usage) {
        if usage == Usage::default() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that events come in the order of their numbers.
        self.sink.usage(&CallUsage {
            call: state.0,
            model: model.clone(),
            usage,
        });
        state.0 += 1;
        state.1 += usage;
    }

    /// Tells whoever follows the job.
    pub(super) fn tell(&self, detail: &str) {
        self.sink.status("model", Some(detail));
    }

    /// What all calls so far used.
    pub(super) fn total(&self) -> Usage {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}
