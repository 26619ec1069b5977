//! What the pool cannot know by itself, and asks the store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::clock::Clock;
use common::ids::{TenantId, WorkerId};
use common::store::Store;
use common::workspace::Owner;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

/// A worker that was not heard of for so long, and of whom no job says that it runs there, is dead.
const DEAD_AFTER: Duration = Duration::from_mins(1);

/// Tells whether a worker still lives; when in doubt it must say yes.
pub type IsAlive = Arc<dyn Fn(Uuid) -> BoxFuture<'static, bool> + Send + Sync>;

/// Tells whether a tenant's conversation or agent is still there; when in doubt it must say yes.
pub type IsThere = Arc<dyn Fn(TenantId, Owner) -> BoxFuture<'static, bool> + Send + Sync>;

/// See the module.
#[derive(Clone)]
pub struct Asks {
    /// Whose sandboxes the reaper leaves alone.
    pub is_alive: IsAlive,
    /// For whom sandboxes are kept.
    pub is_there: IsThere,
}

impl Asks {
    /// Asks the store; when it does not answer, everybody lives and everything is there.
    pub fn of(store: &Store, clock: &Clock) -> Self {
        Self {
            is_alive: is_alive(store.clone(), clock.clone()),
            is_there: is_there(store.clone()),
        }
    }
}

fn is_alive(store: Store, clock: Clock) -> IsAlive {
    Arc::new(move |id| {
        let (store, clock) = (store.clone(), clock.clone());
        async move {
            let gone = store.is_worker_gone(WorkerId(id), clock.now() - DEAD_AFTER).await;
            !gone.is_ok_and(|gone| gone)
        }
        .boxed()
    })
}

fn is_there(store: Store) -> IsThere {
    Arc::new(move |tenant_id, owner| {
        let store = store.clone();
        async move {
            match owner {
                Owner::Conversation(id) => !store.conversation(tenant_id, id).await.is_ok_and(|it| it.is_none()),
                Owner::Agent(id) => !store.agent(tenant_id, id).await.is_ok_and(|it| it.is_none()),
            }
        }
        .boxed()
    })
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asks").finish_non_exhaustive()
    }
}
