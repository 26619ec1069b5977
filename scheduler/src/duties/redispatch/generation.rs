//! Building a Redis that is new: the generation of a shard is begun, waited for and opened.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use common::ids::JobId;
use common::job::Job;
use common::queue::{Generation, Shard};
use uuid::Uuid;

use super::super::reclaim::adopt;
use super::{PAGE, Redispatch};

impl Redispatch {
    /// Begins, waits for, or opens the generation of a shard. Answers whether it is open.
    pub(super) async fn open(&self, shard: Shard, now: DateTime<Utc>) -> anyhow::Result<bool> {
        if self.queue.is_open(shard).await? {
            return Ok(true);
        }
        let begun = match self.queue.generation(shard).await? {
            Generation::Open(_) => return Ok(true),
            Generation::Closed(begun) => begun,
            Generation::Missing => {
                tracing::info!(?shard, "Redis is new: building it from Postgres");
                match self.queue.begin_generation(shard).await? {
                    Generation::Closed(begun) => begun,
                    _ => return Ok(false),
                }
            }
        };
        // Claims that were on their way are confirmed in time and then run, or so late that they are given back. Asked first:
        // what is confirmed meanwhile is seen to run.
        let is_place_wanted = self.store.is_place_wanted().await?;
        // Their places are taken again before anybody else can have them, and their time begins now.
        let is_anything_running = self.adopt_running(shard).await?;
        if (is_anything_running || is_place_wanted) && begun.age < TimeDelta::from_std(self.queue.lease_ttl())? {
            return Ok(false);
        }
        self.sync_settings(now).await?;
        let dispatched = self.dispatch_lanes(shard).await?;
        let opened = self.queue.open_generation(shard, begun).await?;
        if dispatched > 0 || is_anything_running {
            tracing::warn!(?shard, dispatched, opened, "Redis had lost what it held: it is rebuilt");
        } else {
            tracing::info!(?shard, opened, "Redis is built");
        }
        Ok(opened)
    }

    /// Begins leases for the running jobs of a shard. Answers whether any job of the shard runs.
    async fn adopt_running(&self, shard: Shard) -> anyhow::Result<bool> {
        let (mut found, mut after) = (false, JobId(Uuid::nil()));
        loop {
            let jobs = self.store.running_after(after, DateTime::<Utc>::MAX_UTC, PAGE).await?;
            let mine: Vec<&Job> = jobs
                .iter()
                .filter(|job| self.queue.shard_of(job.tenant_id) == shard)
                .collect();
            found |= !mine.is_empty();
            adopt(&self.queue, &mine).await?;
            match jobs.last() {
                Some(last) if jobs.len() == usize::try_from(PAGE).unwrap_or(usize::MAX) => after = last.id,
                _ => return Ok(found),
            }
        }
    }

    pub(super) async fn sync_settings(&self, now: DateTime<Utc>) -> anyhow::Result<()> {
        let (mut limits, mut weights) = (BTreeMap::new(), BTreeMap::new());
        for shard in self.queue.shards() {
            limits.insert(shard, self.queue.limits(shard).await?);
            weights.insert(shard, self.queue.weights(shard).await?);
        }
        let settings = self.store.settings(now).await?;
        self.queue.sync_limits(&limits, &settings.limits).await?;
        self.queue
            .sync_weights(&weights, &settings.tenant_weights, &settings.queue_weights)
            .await?;
        self.queue.set_paused(&settings.paused_queues).await?;
        Ok(())
    }
}
