//! Saying in Postgres which environments this worker serves, and from which images.

use std::collections::BTreeMap;
use std::time::Duration;

use common::ids::WorkerId;
use common::store::Store;
use common::store::environments::Offered;
use tokio_util::sync::CancellationToken;

use crate::environment::Environments;
use crate::pool::Pool;

/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_secs(5);

/// Says it when it changes, until `stop`.
pub(crate) async fn run(
    store: Store,
    worker_id: WorkerId,
    (environments, pool): (std::sync::Arc<Environments>, Pool),
    stop: CancellationToken,
) {
    let mut said: Option<Vec<Offered>> = None;
    loop {
        let offered = offered(&environments, &pool);
        if said.as_ref() != Some(&offered) {
            match store.offer_environments(worker_id, &offered).await {
                Ok(()) => said = Some(offered),
                Err(error) => tracing::debug!(%error, "Postgres does not hear what this worker serves"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn offered(environments: &Environments, pool: &Pool) -> Vec<Offered> {
    let statuses = pool.status().into_iter();
    let mut ids: BTreeMap<String, Option<String>> = statuses.map(|status| (status.name, status.image_id)).collect();
    let offer = |(name, environment): (&String, &std::sync::Arc<crate::environment::Environment>)| {
        environment.offered(ids.remove(name).flatten())
    };
    environments.iter().map(offer).collect()
}
