//! The live part of event logs: one stream a job, entry id `<seq>-0`.

use super::{Error, Queue};
use crate::ids::{JobId, TenantId, WorkerId};
use crate::job::event::Event;

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All events are in the log.
    Ok,
    /// The log lacks what comes before: append everything that Postgres does not have.
    NeedsSeed,
    /// Redis was wiped and the attempt is not registered yet.
    Unknown,
    /// The attempt is not the caller's any more.
    Lost,
}

/// How long a log outlives its last event, s. Everything in it is in Postgres long before.
const LOG_TTL_S: u32 = 24 * 3600;

/// Most entries in one read.
pub(crate) const READ_MAX: usize = 1_000;

impl Queue {
    /// Appends events of an attempt, which follow each other without a hole. `written` is the last number in Postgres.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn append(
        &self,
        tenant_id: TenantId,
        job_id: JobId,
        fence: (u32, WorkerId),
        written: u64,
        events: &[Event],
    ) -> Result<Appended, Error> {
        let Some(first) = events.first() else {
            return Ok(Appended::Ok);
        };
        let mut invocation = self.inner.scripts.append.key(self.root(self.shard_of(tenant_id)));
        invocation
            .arg(job_id.to_string())
            .arg(fence.0)
            .arg(fence.1.to_string())
            .arg(first.seq.saturating_sub(1))
            .arg(written)
            .arg(LOG_TTL_S)
            .arg(self.clock_offset_ms());
        for event in events {
            let json = serde_json::to_string(event).map_err(|error| Error::Reply(error.to_string()))?;
            invocation.arg(event.seq).arg(json);
        }
        let code: i64 = invocation.invoke_async(&mut self.link().await?).await?;
        Ok(match code {
            1 => Appended::Ok,
            -2 => Appended::NeedsSeed,
            -1 => Appended::Unknown,
            _ => Appended::Lost,
        })
    }

    /// Events after `after` that Redis has, in order; at most some thousand.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn tail(&self, tenant_id: TenantId, job_id: JobId, after: u64) -> Result<Vec<Event>, Error> {
        let key = self.key(self.shard_of(tenant_id), &format!("log:{job_id}"));
        let entries: Vec<(String, Vec<String>)> = redis::cmd("XRANGE")
            .arg(key)
            .arg(format!("({after}-0"))
            .arg("+")
            .arg("COUNT")
            .arg(READ_MAX)
            .query_async(&mut self.connection().await?)
            .await?;
        entries
            .iter()
            .filter_map(|(_, fields)| fields.get(1))
            .map(|json| serde_json::from_str(json).map_err(|error| Error::Reply(format!("event: {error}"))))
            .collect()
    }

    /// Drops what Postgres has, but for its last event.
    ///
    /// # Errors
    /// When Redis is away: the log is longer than it needs to be.
    pub async fn trim(&self, tenant_id: TenantId, job_id: JobId, written: u64) -> Result<(), Error> {
        let key = self.key(self.shard_of(tenant_id), &format!("log:{job_id}"));
        let _trimmed: i64 = redis::cmd("XTRIM")
            .arg(key)
            .arg("MINID")
            .arg(format!("{written}-0"))
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(())
    }
}
