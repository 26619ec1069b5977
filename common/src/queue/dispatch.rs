//! Dispatch: making committed jobs known to the workers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::gate::Hold;
use super::{Error, Queue, Shard};
use crate::ids::{JobId, TenantId};
use crate::job::decision::ALONE_AFTER;
use crate::job::spec::LEVEL_HEAD_START;
use crate::job::{Brief, Job, NewJob};

/// What Redis needs to know of a job.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub(super) job_id: JobId,
    pub(super) tenant_id: TenantId,
    pub(super) attempt: u32,
    pub(super) lane: String,
    pub(super) level: u8,
    pub(super) holds: Vec<Hold>,
    pub(super) score: i64,
}

/// Jobs that Redis is asked for with one command: meanwhile it answers nobody else, about a millisecond.
const ASKED_AT_ONCE: usize = 2_000;

/// What became of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatched {
    /// It can be released.
    Added,
    /// It was known already.
    Known,
    /// Its backlog is full, or its tenant has as many as it may: it stays in Postgres until there is room.
    Spilled,
    /// The line at one of its gates is too long: it stays in Postgres until half of that is gone.
    InLine,
}

impl Dispatch {
    /// The next attempt of a queued job.
    pub fn from_job(job: &Job) -> Self {
        Self::from_brief(&Brief::from(job))
    }

    /// The next attempt of a queued job.
    pub fn from_brief(job: &Brief) -> Self {
        Self {
            job_id: job.id,
            tenant_id: job.tenant_id,
            attempt: job.attempt + 1,
            lane: lane(&job.queue, &job.class, job.losses >= ALONE_AFTER),
            level: job.priority,
            holds: Hold::all(
                job.tenant_id,
                job.agent_id,
                job.conversation_id,
                (job.concurrency.as_ref(), job.rate.as_ref()),
            ),
            score: score(job.created_at, job.priority),
        }
    }

    /// The attempt that a running job is in, to register it again.
    pub fn from_running(job: &Job) -> Self {
        Self {
            attempt: job.attempt,
            ..Self::from_job(job)
        }
    }

    /// The first attempt of a job that was just inserted.
    pub fn from_new(job: &NewJob) -> Self {
        Self {
            job_id: job.id,
            tenant_id: job.tenant_id,
            attempt: 1,
            lane: lane(&job.spec.queue, &job.class, false),
            level: job.spec.priority,
            holds: Hold::all(
                job.tenant_id,
                job.links.agent.map(|(id, _)| id),
                job.links.conversation_id,
                (job.spec.concurrency.as_ref(), job.spec.rate.as_ref()),
            ),
            score: score(job.created_at, job.spec.priority),
        }
    }

    /// The job.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    pub(super) fn push_args(&self, script: &mut redis::ScriptInvocation<'_>) {
        let holds: Vec<String> = self.holds.iter().map(Hold::to_string).collect();
        script
            .arg(self.job_id.to_string())
            .arg(self.attempt)
            .arg(self.tenant_id.to_string())
            .arg(&self.lane)
            .arg(self.level)
            .arg(holds.join(","))
            .arg(self.score);
    }
}

/// A lane: one queue's jobs of one class; those that are claimed alone have lanes of their own.
pub(super) fn lane(queue: &str, class: &str, is_alone: bool) -> String {
    let mark = if is_alone { "!" } else { "" };
    format!("{queue}/{class}{mark}")
}

/// Order within a tenant: the lowest first. Never negative, because times are after 2026.
fn score(created_at: DateTime<Utc>, priority: u8) -> i64 {
    let head_start = i64::from(priority) * i64::try_from(LEVEL_HEAD_START.as_millis()).unwrap_or(0);
    created_at.timestamp_millis() - head_start
}

impl Queue {
    /// Makes queued jobs known. Repeating it does nothing. Answers one result for each, in order.
    ///
    /// # Errors
    /// When Redis is away: redispatch finds the rows later.
    pub async fn dispatch(&self, jobs: &[Dispatch]) -> Result<Vec<Dispatched>, Error> {
        self.dispatch_as(jobs, "").await
    }

    /// The same for jobs that come next in the lines of which others were left in Postgres.
    ///
    /// # Errors
    /// As [`Self::dispatch`].
    pub async fn dispatch_next_in_line(&self, jobs: &[Dispatch]) -> Result<Vec<Dispatched>, Error> {
        self.dispatch_as(jobs, "next").await
    }

    async fn dispatch_as(&self, jobs: &[Dispatch], place: &str) -> Result<Vec<Dispatched>, Error> {
        let mut by_shard: BTreeMap<Shard, Vec<usize>> = BTreeMap::new();
        for (index, job) in jobs.iter().enumerate() {
            by_shard.entry(self.shard_of(job.tenant_id)).or_default().push(index);
        }
        let mut dispatched = vec![Dispatched::Known; jobs.len()];
        for (shard, indexes) in by_shard {
            // A thousand jobs keep a script below some ten milliseconds, for others wait meanwhile.
            for chunk in indexes.chunks(1_000) {
                let mut invocation = self.inner.scripts.dispatch.key(self.root(shard));
                invocation
                    .arg(self.inner.dispatched_max)
                    .arg(self.clock_offset_ms())
                    .arg(place)
                    .arg(self.inner.lanes_max);
                for index in chunk {
                    jobs[*index].push_args(&mut invocation);
                }
                let codes: Vec<i64> = invocation.invoke_async(&mut self.link().await?).await?;
                for (index, code) in chunk.iter().zip(codes) {
                    dispatched[*index] = match code {
                        1 => Dispatched::Added,
                        2 => Dispatched::Spilled,
                        3 => Dispatched::InLine,
                        _ => Dispatched::Known,
                    };
                }
            }
        }
        Ok(dispatched)
    }

    /// Of these jobs, the places in the list of those that Redis does not know, or knows as waiting for Postgres to queue
    /// them: whoever did that died before it said so.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn unknown(&self, jobs: &[(TenantId, JobId)]) -> Result<Vec<usize>, Error> {
        let mut by_shard: BTreeMap<Shard, Vec<usize>> = BTreeMap::new();
        for (index, (tenant_id, _)) in jobs.iter().enumerate() {
            by_shard.entry(self.shard_of(*tenant_id)).or_default().push(index);
        }
        let mut unknown = Vec::new();
        for (shard, indexes) in by_shard {
            for indexes in indexes.chunks(ASKED_AT_ONCE) {
                let mut command = redis::cmd("HMGET");
                command.arg(self.key(shard, "idx"));
                for index in indexes {
                    command.arg(jobs[*index].1.to_string());
                }
                let found: Vec<Option<String>> = command.query_async(&mut self.link().await?).await?;
                let is_unknown = |record: &Option<String>| record.as_ref().is_none_or(|text| text.starts_with("d|"));
                let asked = indexes.iter().zip(found);
                unknown.extend(asked.filter(|(_, record)| is_unknown(record)).map(|(index, _)| *index));
            }
        }
        unknown.sort_unstable();
        Ok(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_worth_its_head_start() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let later = now + LEVEL_HEAD_START;
        assert!(score(now, 5) < score(now, 4));
        assert_eq!(score(later, 5), score(now, 4));
        assert!(score(now, 0) < score(now + LEVEL_HEAD_START * 10, 9));
    }
}
