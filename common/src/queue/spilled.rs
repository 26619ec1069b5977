//! Backlogs of which a part was left in Postgres.

use chrono::{DateTime, Utc};

use super::dispatch::lane;
use super::sets::AT_ONCE;
use super::{Error, Queue};
use crate::ids::TenantId;

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

impl Queue {
    /// The backlogs that once were full, of which jobs may be left in Postgres alone.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn spilled(&self) -> Result<Vec<Spilled>, Error> {
        let mut found = Vec::new();
        for shard in self.shards() {
            for members in self.members(shard, "spilled").await?.chunks(AT_ONCE) {
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

fn read<T: redis::FromRedisValue>(value: &redis::Value) -> Result<T, Error> {
    Ok(redis::from_redis_value_ref(value).map_err(redis::RedisError::from)?)
}
