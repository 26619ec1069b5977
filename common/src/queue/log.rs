//! The live part of event logs: one stream a job, entry id `<seq>-0`.

use super::{Error, Queue, Shard};
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

impl Appended {
    fn of(code: i64) -> Self {
        match code {
            1 => Self::Ok,
            -2 => Self::NeedsSeed,
            -1 => Self::Unknown,
            _ => Self::Lost,
        }
    }
}

/// How long a log outlives its last event, s. Everything in it is in Postgres long before.
const LOG_TTL_S: u32 = 24 * 3600;

/// Most entries in one read.
pub(crate) const READ_MAX: usize = 1_000;

/// Events about to be appended to a job's log. They follow each other without a hole.
#[derive(Clone, Debug)]
pub struct Append {
    /// Whose job: decides the shard.
    pub tenant_id: TenantId,
    /// Whose log.
    pub job_id: JobId,
    /// The fence.
    pub attempt: u32,
    /// The fence.
    pub worker_id: WorkerId,
    /// The last number in Postgres.
    pub written: u64,
    /// Number of the first.
    pub first_seq: u64,
    /// JSON of each.
    pub events: Vec<String>,
}

impl Append {
    /// JSON of events, which are in order and not empty.
    ///
    /// # Errors
    /// When an event cannot be written as JSON.
    pub fn pack(events: &[Event]) -> Result<Vec<String>, Error> {
        let json = |event| serde_json::to_string(event).map_err(|error| Error::Reply(error.to_string()));
        events.iter().map(json).collect()
    }
}

impl Queue {
    /// Appends events to logs of one shard, in one script; answers for each what became of it.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn append(&self, shard: Shard, logs: &[Append]) -> Result<Vec<Appended>, Error> {
        let mut invocation = self.inner.scripts.append.key(self.root(shard));
        invocation.arg(LOG_TTL_S).arg(self.clock_offset_ms());
        for log in logs {
            invocation
                .arg(log.job_id.to_string())
                .arg(log.attempt)
                .arg(log.worker_id.to_string())
                .arg(log.first_seq.saturating_sub(1))
                .arg(log.written)
                .arg(log.events.len());
            for (seq, json) in (log.first_seq..).zip(&log.events) {
                invocation.arg(seq).arg(json);
            }
        }
        let codes: Vec<i64> = invocation.invoke_async(&mut self.link().await?).await?;
        if codes.len() != logs.len() {
            return Err(Error::Reply(format!("{} answers for {} logs", codes.len(), logs.len())));
        }
        Ok(codes.into_iter().map(Appended::of).collect())
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
            .query_async(&mut self.reading_link().await?)
            .await?;
        entries
            .iter()
            .filter_map(|(_, fields)| fields.get(1))
            .map(|json| Event::read(json.as_bytes()).map_err(|error| Error::Reply(format!("event: {error}"))))
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
            .query_async(&mut self.link().await?)
            .await?;
        Ok(())
    }
}
