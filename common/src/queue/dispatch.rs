//! Dispatch: making committed jobs known to the workers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::gate::Hold;
use super::{Error, Queue, Shard};
use crate::ids::{JobId, TenantId};
use crate::job::decision::ALONE_AFTER;
use crate::job::spec::LEVEL_HEAD_START;
use crate::job::{Brief, Job, NewJob};

/// Backlogs that are asked for in one round trip.
const SPILLED_AT_ONCE: usize = 500;

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

/// A backlog of a tenant's lane that once was full: some of its jobs may be in Postgres alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spilled {
    /// The lane's queue.
    pub queue: String,
    /// The lane's class.
    pub class: String,
    /// Whether it is the lane of those that are claimed alone.
    pub is_alone: bool,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Jobs that it has room for.
    pub room: u32,
    /// Jobs of it that wait at a gate, for as long as that is shut.
    pub parked: u32,
    /// The time of the last job that is in it, its level's head start taken off; none when it is empty.
    pub last: Option<DateTime<Utc>>,
}

/// A gate at which so many jobs of a tenant's lane wait that others of them are in Postgres alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The gate.
    pub gate: String,
    /// The lane's queue.
    pub queue: String,
    /// The lane's class.
    pub class: String,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Whether no more than half of those that may wait in Redis still do.
    pub is_short: bool,
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

fn read<T: redis::FromRedisValue>(value: &redis::Value) -> Result<T, Error> {
    Ok(redis::from_redis_value_ref(value).map_err(redis::RedisError::from)?)
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
            let mut command = redis::cmd("HMGET");
            command.arg(self.key(shard, "idx"));
            for index in &indexes {
                command.arg(jobs[*index].1.to_string());
            }
            let found: Vec<Option<String>> = command.query_async(&mut self.link().await?).await?;
            let is_unknown = |record: &Option<String>| record.as_ref().is_none_or(|text| text.starts_with("d|"));
            unknown.extend(
                indexes
                    .iter()
                    .zip(found)
                    .filter(|(_, record)| is_unknown(record))
                    .map(|(index, _)| *index),
            );
        }
        unknown.sort_unstable();
        Ok(unknown)
    }

    /// The backlogs that once were full, of which jobs may be left in Postgres alone.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn spilled(&self) -> Result<Vec<Spilled>, Error> {
        let mut found = Vec::new();
        for shard in self.shards() {
            let members: Vec<String> = redis::cmd("SMEMBERS")
                .arg(self.key(shard, "spilled"))
                .query_async(&mut self.link().await?)
                .await?;
            for members in members.chunks(SPILLED_AT_ONCE) {
                let mut pipe = redis::pipe();
                for member in members {
                    let name = member.replacen(' ', ":", 1);
                    let backlog = self.key(shard, &format!("b:{name}"));
                    pipe.cmd("ZCARD").arg(&backlog);
                    pipe.cmd("ZCARD").arg(self.key(shard, &format!("p:{name}")));
                    pipe.cmd("ZRANGE").arg(backlog).arg(-1).arg(-1).arg("WITHSCORES");
                }
                let answers: Vec<redis::Value> = pipe.query_async(&mut self.link().await?).await?;
                for (member, answers) in members.iter().zip(answers.chunks(3)) {
                    found.extend(self.spilled_of(member, answers)?);
                }
            }
        }
        Ok(found)
    }

    fn spilled_of(&self, member: &str, answers: &[redis::Value]) -> Result<Option<Spilled>, Error> {
        let Some((lane, tenant)) = member.split_once(' ') else {
            return Ok(None);
        };
        let (Some((queue, class)), Ok(tenant_id), [waiting, parked, last]) =
            (lane.split_once('/'), tenant.parse(), answers)
        else {
            return Ok(None);
        };
        let (waiting, parked): (u32, u32) = (read(waiting)?, read(parked)?);
        let last: Vec<(String, i64)> = read(last)?;
        Ok(Some(Spilled {
            queue: queue.to_owned(),
            class: class.trim_end_matches('!').to_owned(),
            is_alone: class.ends_with('!'),
            tenant_id,
            parked,
            room: self.inner.dispatched_max.saturating_sub(waiting),
            last: last
                .first()
                .and_then(|(_, score)| DateTime::from_timestamp_millis(*score)),
        }))
    }

    /// Most jobs that wait at one gate in Redis.
    pub fn line_max(&self) -> u32 {
        self.inner.dispatched_max.div_ceil(10)
    }

    /// The lines of which jobs were left in Postgres.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn lines(&self) -> Result<Vec<Line>, Error> {
        let mut lines = Vec::new();
        for shard in self.shards() {
            let members: Vec<String> = redis::cmd("SMEMBERS")
                .arg(self.key(shard, "lines"))
                .query_async(&mut self.link().await?)
                .await?;
            for members in members.chunks(SPILLED_AT_ONCE) {
                let mut pipe = redis::pipe();
                for member in members {
                    let gate = member.split(' ').next().unwrap_or_default();
                    pipe.cmd("ZCARD").arg(self.key(shard, &format!("w:{gate}")));
                }
                let waiting: Vec<u32> = pipe.query_async(&mut self.link().await?).await?;
                let known = members.iter().zip(waiting);
                lines.extend(known.filter_map(|(member, waiting)| self.line_of(member, waiting)));
            }
        }
        Ok(lines)
    }

    fn line_of(&self, member: &str, waiting: u32) -> Option<Line> {
        let (gate, rest) = member.split_once(' ')?;
        let (lane, tenant) = rest.split_once(' ')?;
        let (queue, class) = lane.split_once('/')?;
        Some(Line {
            gate: gate.to_owned(),
            queue: queue.to_owned(),
            class: class.to_owned(),
            tenant_id: tenant.parse().ok()?,
            is_short: waiting.saturating_mul(20) <= self.inner.dispatched_max,
        })
    }

    /// Says that no job that waits at a line's gate is left in Postgres. One that waits at several may be: what is left of the
    /// lane's backlog is looked for once more.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn end_line(&self, line: &Line) -> Result<(), Error> {
        let backlog = format!("{} {}", lane(&line.queue, &line.class, false), line.tenant_id);
        let shard = self.shard_of(line.tenant_id);
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("SADD").arg(self.key(shard, "spilled")).arg(&backlog).ignore();
        pipe.cmd("SREM")
            .arg(self.key(shard, "lines"))
            .arg(format!("{} {backlog}", line.gate))
            .ignore();
        Ok(pipe.query_async(&mut self.connection().await?).await?)
    }

    /// Says that nothing of a tenant's lane is left in Postgres alone.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn unspill(&self, queue: &str, class: &str, tenant_id: TenantId) -> Result<(), Error> {
        let member = |is_alone| format!("{} {tenant_id}", lane(queue, class, is_alone));
        let key = self.key(self.shard_of(tenant_id), "spilled");
        let _removed: i64 = redis::cmd("SREM")
            .arg(key)
            .arg(member(false))
            .arg(member(true))
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(())
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
