//! Environments, as workers say that they serve them.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;

use super::{Error, Store};
use crate::ids::WorkerId;

/// An environment that a worker serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The image that its sandboxes start from; empty where there are no images.
    pub image: String,
    /// What that name stands for now; none when it is not built.
    pub image_id: Option<String>,
    /// The languages that it runs.
    pub languages: Vec<String>,
    /// Processors of a sandbox, in fractions.
    pub cpus: f64,
    /// Memory of a sandbox, bytes.
    pub memory_bytes: u64,
    /// Processes and threads of a sandbox at once.
    pub pids: u32,
    /// Size of its workspace, bytes.
    pub workspace_bytes: u64,
    /// Sandboxes that are always ready.
    pub warm_size: u32,
    /// The most sandboxes at once.
    pub warm_max: u32,
    /// Hosts that jobs may reach when they name them too.
    pub egress: Vec<String>,
    /// Whether packages can be installed.
    pub installs: bool,
    /// Whether a sandbox serves more than one job: `never` or `user`.
    pub reuse: String,
}

/// An environment as all workers together serve it.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// As the worker says it that started last.
    pub offered: Offered,
    /// Workers that serve it.
    pub workers: u32,
    /// Whether some of them start from another image than others: one is being rolled over.
    pub is_rolling: bool,
}

impl Store {
    /// Writes down what a worker serves now.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn offer_environments(&self, id: WorkerId, offered: &[Offered]) -> Result<(), Error> {
        sqlx::query("update workers set environments = $2 where id = $1")
            .bind(id)
            .bind(Json(offered))
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// What workers serve that were heard of within `within`, by name.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn environments(&self, now: DateTime<Utc>, within: Duration) -> Result<Vec<Served>, Error> {
        let workers: Vec<Json<Vec<Offered>>> = sqlx::query_scalar(
            "select environments from workers where stopped_at is null and seen_at > $1 order by id",
        )
        .bind(now - within)
        .fetch_all(self.pool())
        .await?;
        Ok(joined(workers.into_iter().flat_map(|Json(offered)| offered)))
    }
}

/// Joins what workers say, in order of their start.
fn joined(offers: impl Iterator<Item = Offered>) -> Vec<Served> {
    let mut all: BTreeMap<String, Served> = BTreeMap::new();
    for offered in offers {
        let (workers, is_rolling) = all.get(&offered.name).map_or((0, false), |before| {
            let differs = before.offered.image_id != offered.image_id;
            (before.workers, before.is_rolling || differs)
        });
        let served = Served {
            workers: workers + 1,
            is_rolling,
            offered,
        };
        all.insert(served.offered.name.clone(), served);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_say_is_joined_and_the_youngest_counts() {
        let offered = |name: &str, image_id: &str, cpus| Offered {
            name: name.to_owned(),
            image_id: Some(image_id.to_owned()),
            cpus,
            ..Offered::default()
        };
        let all = [offered("b", "1", 1.0), offered("a", "1", 1.0), offered("b", "2", 2.0)];
        let served = joined(all.into_iter());
        let seen: Vec<_> = served
            .iter()
            .map(|it| (it.offered.name.as_str(), it.workers, it.is_rolling))
            .collect();
        assert_eq!(seen, [("a", 1, false), ("b", 2, true)]);
        assert!((served[1].offered.cpus - 2.0).abs() < f64::EPSILON);
    }
}
