//! What workers say of their sandboxes: written with their other signs of life, for people to read.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::types::Json;

use super::{Error, Store};
use crate::ids::WorkerId;

/// What keeps a whole worker from starting sandboxes, whatever their environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldBack {
    /// The engine that starts them does not answer.
    Engine,
    /// The disk under it is full.
    Disk,
}

impl HeldBack {
    /// Its name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Disk => "disk",
        }
    }
}

/// The sandboxes of one environment at one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandboxes {
    /// The environment.
    pub environment: String,
    /// The image that they start from.
    pub image: String,
    /// Ready.
    pub warm: u32,
    /// Of those, how many have Claude Code started and waiting.
    pub spares: u32,
    /// In use.
    pub leased: u32,
    /// Kept for whoever used them last.
    pub kept: u32,
    /// Being started.
    pub creating: u32,
    /// Being destroyed.
    pub retiring: u32,
    /// Jobs that wait for one.
    pub waiting: u32,
    /// How many jobs found nothing warm since the worker started, by the reason.
    pub cold_starts: BTreeMap<String, u64>,
    /// Why the last start failed, when none has succeeded since.
    pub last_error: Option<String>,
    /// The same when it is the machine's fault.
    pub held_back: Option<HeldBack>,
}

/// What a worker said, and when.
#[derive(Clone, Debug)]
pub struct Said {
    /// The worker.
    pub worker_id: WorkerId,
    /// Its name.
    pub worker: String,
    /// How it starts sandboxes.
    pub driver: String,
    /// When it said so, at the latest.
    pub seen_at: DateTime<Utc>,
    /// By environment.
    pub sandboxes: Vec<Sandboxes>,
}

impl Said {
    /// What keeps the worker from starting sandboxes; none while one is ready, or when nothing of the kind is known.
    pub fn held_back(&self) -> Option<HeldBack> {
        let is_ready = self.sandboxes.iter().any(|of| of.warm > 0);
        let found = || self.sandboxes.iter().filter_map(|of| of.held_back);
        let disk = found().find(|held_back| *held_back == HeldBack::Disk);
        disk.or_else(|| found().next()).filter(|_| !is_ready)
    }
}

impl Store {
    /// Writes down what a worker's pool holds.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn say_sandboxes(&self, id: WorkerId, sandboxes: &[Sandboxes]) -> Result<(), Error> {
        sqlx::query("update workers set sandboxes = $2 where id = $1")
            .bind(id)
            .bind(Json(sandboxes))
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// What the workers that were heard of since `since` said, by their names.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn sandboxes(&self, since: DateTime<Utc>) -> Result<Vec<Said>, Error> {
        let rows = sqlx::query(
            "select id, name, driver, seen_at, sandboxes from workers
             where seen_at > $1 and stopped_at is null and sandboxes is not null order by name, id",
        )
        .bind(since)
        .fetch_all(self.pool())
        .await?;
        let said = rows.iter().map(|row| {
            Ok(Said {
                worker_id: row.try_get("id")?,
                worker: row.try_get("name")?,
                driver: row.try_get("driver")?,
                seen_at: row.try_get("seen_at")?,
                sandboxes: row.try_get::<Json<_>, _>("sandboxes")?.0,
            })
        });
        said.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_held_back_while_nothing_is_ready() {
        let of = |warm, held_back| Sandboxes {
            warm,
            held_back,
            ..Sandboxes::default()
        };
        let said = |sandboxes| Said {
            worker_id: WorkerId::new(),
            worker: "w".to_owned(),
            driver: "docker".to_owned(),
            seen_at: DateTime::UNIX_EPOCH,
            sandboxes,
        };
        let (engine, disk) = (Some(HeldBack::Engine), Some(HeldBack::Disk));
        assert_eq!(said(vec![of(0, None)]).held_back(), None);
        assert_eq!(said(vec![of(0, engine), of(0, disk)]).held_back(), disk);
        assert_eq!(said(vec![of(0, None), of(0, engine)]).held_back(), engine);
        assert_eq!(said(vec![of(1, None), of(0, disk)]).held_back(), None);
    }
}
