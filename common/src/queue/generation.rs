//! The generation: how everybody knows that Redis is new.
//!
//! A wiped Redis has no `gen` key, and nothing is claimed from it. The leader begins a generation, gives the workers one
//! lease time to register what they run, dispatches what is queued in Postgres, and opens it.

use chrono::{DateTime, Utc};

use super::{Error, Queue, Shard};

/// The state of a shard's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// There is none: Redis is new.
    Missing,
    /// Begun at this time and closed for claims.
    Closed(DateTime<Utc>),
    /// Open for claims.
    Open(DateTime<Utc>),
}

impl Queue {
    /// The generation of a shard.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn generation(&self, shard: Shard) -> Result<Generation, Error> {
        let (begun, open): (Option<i64>, Option<i64>) = redis::cmd("HMGET")
            .arg(self.key(shard, "gen"))
            .arg("begun_ms")
            .arg("open")
            .query_async(&mut self.connection().await?)
            .await?;
        let Some(begun) = begun.and_then(DateTime::from_timestamp_millis) else {
            return Ok(Generation::Missing);
        };
        Ok(if open == Some(1) {
            Generation::Open(begun)
        } else {
            Generation::Closed(begun)
        })
    }

    /// Begins a generation, closed for claims, unless there is one.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn begin_generation(&self, shard: Shard, now: DateTime<Utc>) -> Result<(), Error> {
        let _new: i64 = redis::cmd("HSETNX")
            .arg(self.key(shard, "gen"))
            .arg("begun_ms")
            .arg(now.timestamp_millis())
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(())
    }

    /// Opens a generation for claims and wakes the workers.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn open_generation(&self, shard: Shard) -> Result<(), Error> {
        let mut pipe = redis::pipe();
        pipe.atomic()
            .cmd("HSET")
            .arg(self.key(shard, "gen"))
            .arg("open")
            .arg(1)
            .ignore();
        self.push_wake(&mut pipe, shard);
        let () = pipe.query_async(&mut self.connection().await?).await?;
        Ok(())
    }

    pub(super) fn push_wake(&self, pipe: &mut redis::Pipeline, shard: Shard) {
        pipe.cmd("XADD")
            .arg(self.key(shard, "wake"))
            .arg("MAXLEN")
            .arg(1)
            .arg("*")
            .arg("w")
            .arg(1)
            .ignore();
    }
}
