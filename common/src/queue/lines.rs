//! Lines at gates of which a part was left in Postgres.

use super::dispatch::lane;
use super::sets::AT_ONCE;
use super::{Error, Queue};
use crate::ids::TenantId;

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

impl Queue {
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
            for members in self.members(shard, "lines").await?.chunks(AT_ONCE) {
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
}
