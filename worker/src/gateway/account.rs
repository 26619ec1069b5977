//! What the programs of one attempt used of models.

use std::sync::{Arc, Mutex, PoisonError};

use common::job::Failure;
use common::message::Usage;

use crate::executor::native::{CallUsage, TurnSink};
use crate::model::{Error, ModelName, OpenCall, Setback};

/// The account of one attempt: it adds up, and tells whoever follows the job. The ledger writes.
pub(super) struct Account {
    sink: Arc<dyn TurnSink>,
    total: Mutex<Usage>,
    over_budget: Mutex<Option<Failure>>,
}

impl Account {
    pub(super) fn new(sink: Arc<dyn TurnSink>) -> Self {
        Self {
            sink,
            total: Mutex::default(),
            over_budget: Mutex::default(),
        }
    }

    /// Ends a call that used so much.
    pub(super) fn end(&self, call: OpenCall, model: &ModelName, error: Option<&Error>, usage: Usage) {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that events come in the order of their numbers.
        let fact = call.end(error, usage);
        self.sink.usage(&CallUsage::new(model, &fact));
        *total += usage;
    }

    /// Takes a call that failed before its first token.
    pub(super) fn setback(&self, setback: &Setback<'_>) {
        self.sink.status("model", Some(&setback.to_string()));
        if let Some(fact) = &setback.spent {
            self.sink.usage(&CallUsage::new(setback.model, fact));
            *self.total.lock().unwrap_or_else(PoisonError::into_inner) += fact.usage;
        }
    }

    /// A call was not made. The first that did not fit into a budget is remembered: it is why a program ends that cannot go
    /// on without.
    pub(super) fn refused(&self, error: &Error) {
        if matches!(error, Error::Budget { .. } | Error::Unpriced { .. }) {
            let mut over_budget = self.over_budget.lock().unwrap_or_else(PoisonError::into_inner);
            over_budget.get_or_insert_with(|| error.failure());
        }
    }

    /// Why a call was not made, when one did not fit into a budget.
    pub(super) fn over_budget(&self) -> Option<Failure> {
        self.over_budget.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What all calls so far used.
    pub(super) fn total(&self) -> Usage {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
