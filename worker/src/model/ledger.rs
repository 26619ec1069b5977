//! The books of one attempt: what each call may cost at most, what it used, and what that cost.
//!
//! A call has an [`Entry`] from before it is made until its end. While a budget is set, its upper bound is held against
//! the budget in Postgres; what it used is a fact that is written down, whatever became of the attempt meanwhile.
//!
//! # Invariants
//! - Every entry ends in a row or in nothing having been asked: one that is dropped after that is written as an estimate,
//!   one that is dropped before gives back what is held for it.
//! - What is held is an upper bound: no tokenizer makes more tokens of a text than it has bytes.

mod writer;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::clock::Clock;
use common::job::Job;
use common::message::Usage;
use common::money::Usd;
use common::store::budgets::{Amounts, Budgets, Hold};
use common::store::usage::Call;
use uuid::Uuid;

use super::books::Books;
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
    books: Books,
    job: Job,
    /// What the job itself may spend.
    of_job: Amounts,
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

impl Ledger {
    /// Books that nobody reads: nothing is written and nothing is limited.
    pub fn unkept(prices: Arc<Prices>, clock: Clock) -> Self {
        Self::with(prices, clock, None)
    }

    /// The books of an attempt whose job may spend so much. It must be made within the runtime.
    pub(super) fn begin(books: Books, job: Job, of_job: Amounts, clock: Clock) -> Self {
        let prices = books.prices();
        let keeper = Keeper {
            writer: Writer::start(books.store().clone(), job.clone()),
            books,
            job,
            of_job,
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
            is_asked: false,
        };
        if let Some(keeper) = &self.inner.keeper {
            keeper.hold(&mut entry, size, &self.inner.clock).await?;
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

    fn write(&self, entry: &mut Entry, usage: Usage) -> Call {
        let cost = entry.price.as_ref().map(|price| price.cost(&usage));
        let fact = Call {
            call: self.inner.next.fetch_add(1, Ordering::Relaxed),
            provider: entry.model.provider().to_owned(),
            model: entry.model.model().to_owned(),
            usage,
            cost,
            price: entry.price.as_ref().and_then(|price| serde_json::to_string(price).ok()),
            at: self.inner.clock.now(),
            hold: entry.hold.take(),
        };
        {
            let mut spent = self.inner.spent.lock().unwrap_or_else(PoisonError::into_inner);
            spent.calls += 1;
            spent.unpriced_calls += u32::from(cost.is_none());
            spent.cost += cost.unwrap_or_default();
        }
        if let Some(keeper) = &self.inner.keeper {
            keeper.writer.write(fact.clone());
        }
        fact
    }
}

impl Keeper {
    /// Holds the call's upper bound against the budgets that there are now.
    async fn hold(&self, entry: &mut Entry, size: Size, clock: &Clock) -> Result<(), Error> {
        let budgets = Budgets {
            job: self.of_job,
            subjects: self.books.budgets(&self.job).await?,
        };
        let budgets = budgets.for_model(&entry.model.to_string());
        if budgets.is_unlimited() {
            return Ok(());
        }
        let mut amounts = budgets.subjects.iter().map(|of| of.budget.amounts).chain([budgets.job]);
        let is_in_dollars = amounts.any(|amounts| amounts.cost.is_some());
        if is_in_dollars && entry.price.is_none() {
            let model = entry.model.to_string();
            return Err(Error::Unpriced { model });
        }
        // What was used is counted instead of what was held as soon as it is written.
        self.writer.flush().await;
        // Noted before anybody is asked: who is dropped while it is committed gives it back.
        let id = Uuid::now_v7();
        entry.hold = Some(id);
        let price = entry.price.as_ref();
        let store = self.books.store();
        let held = store
            .hold_budget(&self.job, &budgets, clock.now(), |left| fit(id, left, size, price))
            .await;
        match held {
            Ok(Ok(hold)) => {
                entry.output_tokens_max = u32::try_from(hold.output_tokens).unwrap_or(u32::MAX);
                Ok(())
            }
            Ok(Err(left)) => {
                let left = explain(left, size, price);
                entry.hold = None;
                Err(Error::Budget { left })
            }
            Err(error) => Err(Error::Books(Box::new(error))),
        }
    }
}

/// The hold of a call in what is left; none when it does not fit.
fn fit(id: Uuid, left: Amounts, size: Size, price: Option<&Price>) -> Option<Hold> {
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
        id,
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
    /// What is held for it, or may be.
    hold: Option<Uuid>,
    input_bytes: u64,
    output_tokens_max: u32,
    is_asked: bool,
}

impl Entry {
    /// Tokens that the answer may have, after the budget had its say.
    pub fn output_tokens_max(&self) -> u32 {
        self.output_tokens_max
    }

    /// The same where a budget holds them.
    pub fn held(&self) -> Option<u32> {
        self.hold.map(|_| self.output_tokens_max)
    }

    /// The request goes out: what becomes of it may cost something.
    pub fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Writes down what the call used, and answers that.
    pub fn close(mut self, usage: Usage) -> Call {
        self.is_asked = false;
        self.ledger.clone().write(&mut self, usage)
    }

    /// Nothing was used.
    pub fn release(mut self) {
        self.is_asked = false;
    }

    /// What a call used of whose answer nothing is known: the provider charges at least for what it read.
    pub fn estimate(&self) -> Usage {
        Usage {
            input_tokens: self.input_bytes.div_ceil(BYTES_PER_TOKEN),
            estimated: true,
            ..Usage::default()
        }
    }
}

impl Drop for Entry {
    /// Somebody left the call: under way, or before it was made.
    fn drop(&mut self) {
        if self.is_asked {
            let usage = self.estimate();
            self.ledger.clone().write(self, usage);
        } else if let (Some(hold), Some(keeper)) = (self.hold, &self.ledger.inner.keeper) {
            keeper.writer.release(hold);
        }
    }
}

#[cfg(test)]
mod tests;
