//! The books of a worker: what every attempt's [`Ledger`] is opened with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::agent::Budget;
use common::clock::Clock;
use common::ids::TenantId;
use common::job::Job;
use common::store::budgets::{Amounts, SubjectBudget, WindowBudget};
use common::store::subjects::Subject;
use common::store::{self, Store};
use tokio::time::Instant;

use super::ledger::Ledger;
use super::price::Prices;
use super::{Error, Settings};

/// How long what a tenant has set is believed to be what it was: reading it is two round trips before each call.
const BELIEVED: Duration = Duration::from_secs(5);

/// Tenants that are remembered; all are forgotten when there are more.
const TENANTS_MAX: usize = 10_000;

/// What tenants have set, and when each was read.
type Tenants = HashMap<TenantId, (Instant, Set)>;

/// What a tenant has set.
#[derive(Clone, Copy, Debug)]
struct Set {
    /// For all its calls.
    budget: Option<WindowBudget>,
    /// Whether some of its agents, conversations, users or models have budgets.
    has_subjects: bool,
}

/// The books. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Books {
    store: Store,
    prices: Arc<Prices>,
    tenants: Arc<Mutex<Tenants>>,
}

impl Books {
    /// Books with the prices that settings name.
    ///
    /// # Errors
    /// [`Error::Settings`] when the file of prices is wrong.
    pub fn open(settings: &Settings, store: Store) -> Result<Self, Error> {
        let file = settings.prices.as_deref().filter(|file| !file.as_os_str().is_empty());
        Ok(Self {
            store,
            prices: Arc::new(Prices::open(file)?),
            tenants: Arc::default(),
        })
    }

    /// The books of an attempt whose agent has this budget.
    ///
    /// # Errors
    /// [`Error::Books`] when Postgres does not say whether anything else is limited.
    pub async fn ledger(&self, job: &Job, budget: &Budget, clock: &Clock) -> Result<Ledger, Error> {
        let of_job = Amounts {
            // What an agent's definition says was validated when it was saved.
            cost: budget.max_cost_usd.as_deref().and_then(|text| text.parse().ok()),
            output_tokens: budget.max_output_tokens,
        };
        // Asked now, so that an attempt whose calls could not be made does not begin.
        self.set_by(job.tenant_id).await?;
        Ok(Ledger::begin(self.clone(), job.clone(), of_job, clock.clone()))
    }

    /// What calls of a job are held against at this moment, besides its own budget: what was set or changed since the
    /// attempt began counts too.
    ///
    /// # Errors
    /// [`Error::Books`] when Postgres does not say.
    pub(super) async fn budgets(&self, job: &Job) -> Result<Vec<SubjectBudget>, Error> {
        let set = self.set_by(job.tenant_id).await?;
        let mut subjects = Vec::new();
        if set.has_subjects {
            subjects = self.store.subject_budgets_of(job).await.map_err(books)?;
        }
        subjects.extend(set.budget.map(|budget| SubjectBudget {
            subject: Subject::Tenant,
            budget,
        }));
        Ok(subjects)
    }

    /// Where facts are kept.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// What calls cost.
    pub(super) fn prices(&self) -> Arc<Prices> {
        Arc::clone(&self.prices)
    }

    async fn set_by(&self, id: TenantId) -> Result<Set, Error> {
        let known = self
            .tenants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .copied();
        if let Some((at, set)) = known
            && at.elapsed() < BELIEVED
        {
            return Ok(set);
        }
        let set = match (self.read(id).await, known) {
            (Ok(set), _) => set,
            // Calls of tenants without budgets need no Postgres.
            (Err(error), Some((_, set))) => {
                tracing::warn!(%error, tenant_id = %id, "budgets are believed to be what they were");
                set
            }
            (Err(error), None) => return Err(books(error)),
        };
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= TENANTS_MAX {
            tenants.clear();
        }
        tenants.insert(id, (Instant::now(), set));
        Ok(set)
    }

    async fn read(&self, id: TenantId) -> Result<Set, store::Error> {
        Ok(Set {
            budget: self.store.tenant_budget(id).await?,
            has_subjects: self.store.has_subject_budgets(id).await?,
        })
    }
}

fn books(error: store::Error) -> Error {
    Error::Books(Box::new(error))
}
