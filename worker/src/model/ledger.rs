//! The books of one attempt: what each call may cost at most, what it used, and what that cost.
//!
//! A call has an [`Entry`] from before it is made until its end. While a budget is set, its upper bound is held against
//! the budget in Postgres; what it used is a fact that is written down, whatever became of the attempt meanwhile.
//!
//! # Invariants
//! - Every entry ends in a row or in nothing having been asked: one that is dropped is written as an estimate.
//! - What is held is an upper bound: no tokenizer makes more tokens of a text than it has bytes.

mod writer;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::clock::Clock;
use common::job::Job;
use common::message::Usage;
use common::money::Usd;
use common::store::Store;
use common::store::budgets::{Amounts, Budgets, Hold};
use common::store::usage::Call;
use uuid::Uuid;

use super::price::{Price, Prices};
use super::{Error, ModelName};
use writer::Writer;

/// Tokens that an answer must have room for, unless it was not to have more.
const OUTPUT_TOKENS_MIN: u64 = 16;

/// Bytes that count as one token where nobody counted.
pub(super) const BYTES_PER_TOKEN: u64 = 4;

/// The books of one attempt. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    prices: Arc<Prices>,
    clock: Clock,
    next: AtomicU32,
    spent: Mutex<Spent>,
    keeper: Option<Keeper>,
}

/// Where facts are kept.
#[derive(Debug)]
struct Keeper {
    store: Store,
    job: Job,
    budgets: Budgets,
    writer: Writer,
}

/// What an attempt has spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Calls that were written down.
    pub calls: u32,
    /// Those of them whose price is not known.
    pub unpriced_calls: u32,
    /// What the others cost.
    pub cost: Usd,
}

/// How large a call is at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes that the model reads.
    pub input_bytes: u64,
    /// Tokens that it may write.
    pub output_tokens_max: u32,
    /// Whether it may be asked to write less, when a budget has not enough left for all of them.
    pub shrinks: bool,
}

/// What a call was charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charged {
    /// Number of the call in its attempt.
    pub call: u32,
    /// What it cost; none when the price is not known.
    pub cost: Option<Usd>,
}

impl Ledger {
    /// Books that nobody reads: nothing is written and nothing is limited.
    pub fn unkept(prices: Arc<Prices>, clock: Clock) -> Self {
        Self::with(prices, clock, None)
    }

    /// The books of an attempt, whose calls are held against these budgets. It must be made within the runtime.
    pub fn begin((prices, clock): (Arc<Prices>, Clock), store: Store, job: Job, budgets: Budgets) -> Self {
        let writer = Writer::start(store.clone(), job.clone());
        let keeper = Keeper {
            store,
            job,
            budgets,
            writer,
        };
        Self::with(prices, clock, Some(keeper))
    }

    fn with(prices: Arc<Prices>, clock: Clock, keeper: Option<Keeper>) -> Self {
        Self {
            inner: Arc::new(Inner {
                prices,
                clock,
                next: AtomicU32::new(0),
                spent: Mutex::default(),
                keeper,
            }),
        }
    }

    /// Opens an entry for a call about to be made.
    ///
    /// # Errors
    /// [`Error::Budget`] when too little is left, [`Error::Unpriced`] when nobody can know, [`Error::Books`] when Postgres
    /// is away.
    pub async fn open(&self, model: &ModelName, size: Size) -> Result<Entry, Error> {
        let price = self
            .inner
            .prices
            .of(model, self.inner.clock.now().date_naive())
            .cloned();
        let mut entry = Entry {
            ledger: self.clone(),
            model: model.clone(),
            price,
            hold: None,
            input_bytes: size.input_bytes,
            output_tokens_max: size.output_tokens_max,
            is_open: true,
        };
        if let Some(keeper) = self.inner.keeper.as_ref().filter(|keeper| keeper.is_limited()) {
            match keeper.hold(&entry, size, &self.inner.clock).await {
                Ok(hold) => {
                    entry.hold = Some(hold.id);
                    entry.output_tokens_max = u32::try_from(hold.output_tokens).unwrap_or(u32::MAX);
                }
                Err(error) => {
                    entry.is_open = false;
                    return Err(error);
                }
            }
        }
        Ok(entry)
    }

    /// Waits until everything is written, and answers what was spent.
    pub async fn end(&self) -> Spent {
        if let Some(keeper) = &self.inner.keeper {
            keeper.writer.flush().await;
        }
        *self.inner.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, entry: &Entry, usage: Usage) -> Charged {
        let cost = entry.price.as_ref().map(|price| price.cost(&usage));
        let call = self.inner.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut spent = self.inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
            spent.calls += 1;
            spent.unpriced_calls += u32::from(cost.is_none());
            spent.cost += cost.unwrap_or_default();
        }
        if let Some(keeper) = &self.inner.keeper {
            let at = self.inner.clock.now();
            keeper.writer.write(Call {
                call,
                provider: entry.model.provider().to_owned(),
                model: entry.model.model().to_owned(),
                usage,
                cost,
                price: entry.price.as_ref().and_then(|price| serde_json::to_string(price).ok()),
                at,
                hold: entry.hold,
                windows: keeper.budgets.for_model(&entry.model.to_string()).windows(at),
            });
        }
        Charged { call, cost }
    }
}

impl Keeper {
    fn is_limited(&self) -> bool {
        !self.budgets.is_unlimited()
    }

    /// Holds the call's upper bound.
    async fn hold(&self, entry: &Entry, size: Size, clock: &Clock) -> Result<Hold, Error> {
        let budgets = self.budgets.for_model(&entry.model.to_string());
        let mut amounts = budgets.subjects.iter().map(|of| of.budget.amounts).chain([budgets.job]);
        let is_in_dollars = amounts.any(|amounts| amounts.cost.is_some());
        if is_in_dollars && entry.price.is_none() {
            let model = entry.model.to_string();
            return Err(Error::Unpriced { model });
        }
        // What was used is counted instead of what was held as soon as it is written.
        self.writer.flush().await;
        let price = entry.price.as_ref();
        let held = self
            .store
            .hold_budget(&self.job, &budgets, clock.now(), |left| fit(left, size, price))
            .await;
        match held {
            Ok(Ok(hold)) => Ok(hold),
            Ok(Err(left)) => Err(Error::Budget {
                left: explain(left, size, price),
            }),
            Err(error) => Err(Error::Books(Box::new(error))),
        }
    }
}

/// The hold of a call in what is left; none when it does not fit.
fn fit(left: Amounts, size: Size, price: Option<&Price>) -> Option<Hold> {
    let wanted = u64::from(size.output_tokens_max);
    let mut output_tokens = wanted.min(left.output_tokens.unwrap_or(u64::MAX));
    let bound = price.map(|price| price.bound(size.input_bytes));
    let input = bound.map_or(Usd::ZERO, |bound| bound.input.per_million(size.input_bytes));
    let output = bound.map_or(Usd::ZERO, |bound| bound.output);
    if let Some(cost) = left.cost {
        if input > cost {
            return None;
        }
        output_tokens = output_tokens.min(Usd::pays_for(cost.saturating_sub(input), output));
    }
    let least = if size.shrinks {
        OUTPUT_TOKENS_MIN.min(wanted)
    } else {
        wanted
    };
    (output_tokens >= least.max(1)).then(|| Hold {
        id: Uuid::now_v7(),
        cost: input + output.per_million(output_tokens),
        output_tokens,
    })
}

fn explain(left: Amounts, size: Size, price: Option<&Price>) -> String {
    let mut parts = Vec::new();
    if let (Some(cost), Some(price)) = (left.cost, price) {
        let bound = price.bound(size.input_bytes);
        let needed = bound.input.per_million(size.input_bytes) + bound.output.per_million(OUTPUT_TOKENS_MIN);
        parts.push(format!(
            "{cost} US dollars are left and the next call may need {needed} or more"
        ));
    }
    if let Some(tokens) = left.output_tokens {
        parts.push(format!("{tokens} output tokens are left"));
    }
    parts.join("; ")
}

/// A call in the books.
#[derive(Debug)]
pub struct Entry {
    ledger: Ledger,
    model: ModelName,
    price: Option<Price>,
    hold: Option<Uuid>,
    input_bytes: u64,
    output_tokens_max: u32,
    is_open: bool,
}

impl Entry {
    /// Tokens that the answer may have, after the budget had its say.
    pub fn output_tokens_max(&self) -> u32 {
        self.output_tokens_max
    }

    /// Writes down what the call used.
    pub fn close(mut self, usage: Usage) -> Charged {
        self.is_open = false;
        self.ledger.write(&self, usage)
    }

    /// Nothing was asked, or nothing is known of it to have been used.
    pub fn release(mut self) {
        self.is_open = false;
        if let (Some(hold), Some(keeper)) = (self.hold, &self.ledger.inner.keeper) {
            keeper.writer.release(hold);
        }
    }
}

impl Drop for Entry {
    /// Somebody left a call under way: the provider charges at least for what it read.
    fn drop(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let usage = Usage {
                input_tokens: self.input_bytes.div_ceil(BYTES_PER_TOKEN),
                estimated: true,
                ..Usage::default()
            };
            self.ledger.clone().write(self, usage);
        }
    }
}

#[cfg(test)]
mod tests;
