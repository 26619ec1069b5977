//! Workspaces: deletes those whose conversation or agent is gone, and archives that no workspace has any more.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::objects::Objects;
use common::service::{Duty, Report};
use common::store::Store;
use common::workspace::archive_key;
use uuid::Uuid;

/// Workspaces that one tick looks at, and archives that it deletes.
const LOOK: u32 = 1_000;
const BATCH: u32 = 200;

/// Walks all workspaces slowly, and deletes archives as soon as they may go.
#[derive(Debug)]
pub struct Workspaces {
    store: Store,
    objects: Objects,
    kept: Duration,
    /// The last workspace that was looked at; the next leader begins anew.
    cursor: Mutex<Uuid>,
}

impl Workspaces {
    /// Archives stay `kept` after their last use.
    pub fn new(store: Store, objects: Objects, kept: Duration) -> Self {
        Self {
            store,
            objects,
            kept,
            cursor: Mutex::new(Uuid::nil()),
        }
    }

    async fn delete_ownerless(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        let after = *self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let (deleted, last) = self.store.delete_ownerless_workspaces(after, LOOK, now).await?;
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = last.unwrap_or_default();
        Ok(deleted)
    }

    async fn delete_archives(&self, now: DateTime<Utc>) -> anyhow::Result<u64> {
        if !self.objects.is_configured() {
            return Ok(0);
        }
        let ids = self.store.unused_archives(now - self.kept, BATCH).await?;
        for id in &ids {
            // The object first: a row without one does no harm, and is found again.
            self.objects.delete(&archive_key(*id)).await?;
        }
        Ok(self.store.forget_archives(&ids).await?)
    }
}

impl Duty for Workspaces {
    fn name(&self) -> &'static str {
        "workspaces"
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(30)
    }

    async fn tick(&self, now: DateTime<Utc>) -> anyhow::Result<Report> {
        let deleted = self.delete_ownerless(now).await?;
        let archives = self.delete_archives(now).await?;
        Ok(Report {
            changed: deleted + archives,
            more: archives >= u64::from(BATCH),
        })
    }
}
