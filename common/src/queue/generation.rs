//! The generation: how everybody knows that Redis is new.
//!
//! A wiped Redis has no `gen` key, and nothing is claimed from it. The leader begins a generation, gives the workers one
//! lease time to register what they run, dispatches what is queued in Postgres, and opens it. All times are by the clock
//! that leases pass by, so leaders whose clocks differ agree on them.
//!
//! One that was written to another server is as good as none: a server that was restarted from its files, or a replica
//! that took over, may be behind by any time. Nothing is claimed from it, and it is forgotten before another one begins;
//! so is what stands there without a generation, for a file may have been written between a wipe and the next one.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Error, Queue, Shard};
use crate::job::spec::SlotClass;

/// The state of a shard's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// There is none, or one that was written to another server: Redis is new, or behind.
    Missing,
    /// Closed for claims.
    Closed(Begun),
    /// Open for claims.
    Open(Begun),
}

/// When a generation began, by Redis's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// When.
    pub at: DateTime<Utc>,
    /// How long ago that is.
    pub age: TimeDelta,
}

impl Queue {
    /// The generation of a shard.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn generation(&self, shard: Shard) -> Result<Generation, Error> {
        self.read_generation(shard, false).await
    }

    /// Whether a shard may be claimed from: the cheapest question about it.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn is_open(&self, shard: Shard) -> Result<bool, Error> {
        let Some(mut link) = self.own_link(shard).await? else {
            return Ok(false);
        };
        let open: Option<String> = redis::cmd("HGET")
            .arg(self.key(shard, "gen"))
            .arg("open")
            .query_async(&mut link)
            .await?;
        Ok(open.as_deref() == Some("1"))
    }

    /// Begins a generation, closed for claims, unless there is one; what was there without one, or was written to another
    /// server, is forgotten. Answers what there is then.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn begin_generation(&self, shard: Shard) -> Result<Generation, Error> {
        self.read_generation(shard, true).await
    }

    async fn read_generation(&self, shard: Shard, begin: bool) -> Result<Generation, Error> {
        let mut link = self.link().await?;
        let mut invocation = self.inner.scripts.generation.key(self.root(shard));
        invocation
            .arg(self.clock_offset_ms())
            .arg(u8::from(begin))
            .arg(link.server());
        let (begun_ms, open, now_ms): (i64, i64, i64) = invocation.invoke_async(&mut link).await?;
        let begun = Begun {
            at: DateTime::from_timestamp_millis(begun_ms).unwrap_or_default(),
            age: TimeDelta::milliseconds(now_ms.saturating_sub(begun_ms)),
        };
        Ok(match (begun_ms, open) {
            (0, _) => Generation::Missing,
            (_, 1) => Generation::Open(begun),
            _ => Generation::Closed(begun),
        })
    }

    /// Opens the generation that began then and wakes the workers. Answers false when Redis was wiped since.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn open_generation(&self, shard: Shard, begun: Begun) -> Result<bool, Error> {
        let mut invocation = self.inner.scripts.open.key(self.root(shard));
        invocation.arg(begun.at.timestamp_millis());
        let opened: i64 = invocation.invoke_async(&mut self.connection().await?).await?;
        Ok(opened == 1)
    }

    pub(super) fn push_wake(&self, pipe: &mut redis::Pipeline, shard: Shard) {
        for slot in SlotClass::ALL {
            pipe.cmd("XADD")
                .arg(self.wake_key(shard, slot))
                .arg("MAXLEN")
                .arg(1)
                .arg("*")
                .arg("w")
                .arg(1)
                .ignore();
        }
    }
}
