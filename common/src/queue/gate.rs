//! Gates: the limits that a job passes before it runs.
//!
//! A gate limits how many jobs run at once (places), how many start in a window of time (starts), or is paused until a
//! time. Those of a tenant, a queue and an agent are set by operators; a concurrency key and a rate key carry their
//! limits in each job.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

use super::{Error, Queue, Shard};
use crate::ids::{AgentId, ConversationId, TenantId};
use crate::job::limit::{Limit, Pause, Subject};
use crate::job::{Concurrency, Rate};

/// A pause without an end, ms since 1970: the largest number that the scripts tell from its neighbours.
pub const FOREVER_MS: u64 = 9_007_199_254_740_991;

/// The name of a gate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gate(String);

impl Gate {
    /// All jobs of a tenant.
    pub fn tenant(id: TenantId) -> Self {
        Self(format!("t:{id}"))
    }

    /// All jobs of a queue in one shard.
    pub fn queue(name: &str) -> Self {
        Self(format!("q:{name}"))
    }

    /// All jobs of an agent.
    pub fn agent(id: AgentId) -> Self {
        Self(format!("a:{id}"))
    }

    /// The places of a submitter's key. The key is hashed: it may contain anything.
    pub fn concurrency(tenant_id: TenantId, key: &str) -> Self {
        Self(format!("c:{}", hashed(tenant_id, key)))
    }

    /// The starts of a submitter's key.
    pub fn rate(tenant_id: TenantId, key: &str) -> Self {
        Self(format!("x:{}", hashed(tenant_id, key)))
    }

    /// The turns of a conversation.
    pub fn conversation(id: ConversationId) -> Self {
        Self(format!("v:{id}"))
    }

    /// The name as it is written in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn hashed(tenant_id: TenantId, key: &str) -> String {
    let digest = Sha256::new()
        .chain_update(tenant_id.uuid())
        .chain_update(key)
        .finalize();
    hex::encode(&digest[..16])
}

/// What a gate lets through; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateLimit {
    /// Jobs that run at once.
    pub running_max: u32,
    /// Jobs that start within the window.
    pub starts_max: u32,
    /// The window, ms.
    pub window_ms: u64,
    /// Nothing passes until then, ms since 1970; [`FOREVER_MS`] for a pause without an end.
    pub paused_till_ms: u64,
}

impl fmt::Display for GateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            running_max,
            starts_max,
            window_ms,
            paused_till_ms,
        } = self;
        write!(f, "{running_max}|{starts_max}|{window_ms}|{paused_till_ms}")
    }
}

/// A gate of one job, with the limits that the job itself names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    gate: Gate,
    limit: GateLimit,
}

impl Hold {
    /// The gates of a job, but for its tenant's and its queue's.
    pub(super) fn all(
        tenant_id: TenantId,
        agent_id: Option<AgentId>,
        conversation_id: Option<ConversationId>,
        (concurrency, rate): (Option<&Concurrency>, Option<&Rate>),
    ) -> Vec<Self> {
        let places = |gate, running_max| Self {
            gate,
            limit: GateLimit {
                running_max,
                ..GateLimit::default()
            },
        };
        let starts = |rate: &Rate| Self {
            gate: Gate::rate(tenant_id, &rate.key),
            limit: GateLimit {
                starts_max: rate.limit,
                window_ms: u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX),
                ..GateLimit::default()
            },
        };
        let key = concurrency.map(|key| places(Gate::concurrency(tenant_id, &key.key), key.limit));
        key.into_iter()
            .chain(conversation_id.map(|id| places(Gate::conversation(id), 1)))
            .chain(agent_id.map(|id| places(Gate::agent(id), 0)))
            .chain(rate.map(starts))
            .collect()
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GateLimit {
            running_max,
            starts_max,
            window_ms,
            ..
        } = self.limit;
        write!(f, "{}={running_max}", self.gate.as_str())?;
        if starts_max > 0 {
            write!(f, "/{starts_max}/{window_ms}")?;
        }
        Ok(())
    }
}

impl Queue {
    /// Sets gates of one shard, removes those that are `None`, and lets those try that waited there.
    /// A gate whose limit is as it was is left alone.
    ///
    /// # Errors
    /// When Redis is away: the redispatch duty sets them again from Postgres.
    pub async fn set_limits(&self, shard: Shard, limits: &[(Gate, Option<GateLimit>)]) -> Result<(), Error> {
        let mut connection = self.connection().await?;
        for chunk in limits.chunks(500) {
            let mut invocation = self.inner.scripts.limit.key(self.root(shard));
            for (gate, limit) in chunk {
                let text = limit.filter(|limit| *limit != GateLimit::default());
                invocation
                    .arg(gate.as_str())
                    .arg(text.map(|limit| limit.to_string()).unwrap_or_default());
            }
            let _changed: i64 = invocation.invoke_async(&mut connection).await?;
        }
        Ok(())
    }

    /// The gates of a shard that an operator limited, each with its limit as it is written there.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn limits(&self, shard: Shard) -> Result<BTreeMap<Gate, String>, Error> {
        let all: Vec<(String, String)> = redis::cmd("HGETALL")
            .arg(self.key(shard, "limits"))
            .query_async(&mut self.connection().await?)
            .await?;
        Ok(all.into_iter().map(|(gate, limit)| (Gate(gate), limit)).collect())
    }

    /// Makes one limit known, which replaces what was known of its subject.
    ///
    /// # Errors
    /// As [`Self::set_limits`].
    pub async fn tell_limit(&self, subject: &Subject, limit: &Limit) -> Result<(), Error> {
        for (shard, gates) in self.gates(subject, limit) {
            let gates: Vec<_> = gates.into_iter().map(|(gate, limit)| (gate, Some(limit))).collect();
            self.set_limits(shard, &gates).await?;
        }
        Ok(())
    }

    /// Makes the index agree with all limits that there are. `known` was read with [`Self::limits`] before `all` was read
    /// from Postgres, so that what is set meanwhile is not undone. Answers how many gates it changed.
    ///
    /// # Errors
    /// As [`Self::set_limits`].
    pub async fn sync_limits(
        &self,
        known: &BTreeMap<Shard, BTreeMap<Gate, String>>,
        all: &[(Subject, Limit)],
    ) -> Result<usize, Error> {
        let mut wanted: BTreeMap<Shard, BTreeMap<Gate, GateLimit>> = BTreeMap::new();
        for (subject, limit) in all {
            for (shard, gates) in self.gates(subject, limit) {
                wanted.entry(shard).or_default().extend(gates);
            }
        }
        let (none, nothing) = (BTreeMap::new(), BTreeMap::new());
        let mut changed = 0;
        for shard in self.shards() {
            let (known, wanted) = (
                known.get(&shard).unwrap_or(&none),
                wanted.get(&shard).unwrap_or(&nothing),
            );
            let gone = known
                .keys()
                .filter(|gate| !wanted.contains_key(gate))
                .map(|gate| (gate.clone(), None));
            let new = wanted
                .iter()
                .filter(|(gate, limit)| known.get(gate) != Some(&limit.to_string()))
                .map(|(gate, limit)| (gate.clone(), Some(*limit)));
            let changes: Vec<_> = gone.chain(new).collect();
            self.set_limits(shard, &changes).await?;
            changed += changes.len();
        }
        Ok(changed)
    }

    fn gates(&self, subject: &Subject, limit: &Limit) -> Vec<(Shard, Vec<(Gate, GateLimit)>)> {
        let (starts_max, window) = limit.rate.unwrap_or_default();
        let whole = GateLimit {
            running_max: limit.max_running.unwrap_or(0),
            starts_max,
            window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
            paused_till_ms: match limit.pause {
                None => 0,
                Some(Pause::Open) => FOREVER_MS,
                Some(Pause::Until(at)) => u64::try_from(at.timestamp_millis()).unwrap_or(0),
            },
        };
        match subject {
            Subject::Tenant(id) => vec![(self.shard_of(*id), vec![(Gate::tenant(*id), whole)])],
            Subject::Agent(tenant_id, id) => vec![(self.shard_of(*tenant_id), vec![(Gate::agent(*id), whole)])],
            Subject::Key(tenant_id, key) => {
                let gates = [Gate::concurrency(*tenant_id, key), Gate::rate(*tenant_id, key)];
                vec![(self.shard_of(*tenant_id), gates.map(|gate| (gate, whole)).to_vec())]
            }
            Subject::Queue(name) => {
                let part = GateLimit {
                    running_max: self.share_of(whole.running_max),
                    starts_max: self.share_of(whole.starts_max),
                    ..whole
                };
                self.shards()
                    .map(|shard| (shard, vec![(Gate::queue(name), part)]))
                    .collect()
            }
        }
    }

    /// One shard's part of a limit of a whole queue. Every shard lets one job through at least, so a limit below the number
    /// of shards is not kept.
    fn share_of(&self, limit: u32) -> u32 {
        limit.div_ceil(u32::from(self.inner.shards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_written_as_the_scripts_read_them() {
        let tenant = TenantId::new();
        let rate = Rate {
            key: "model".to_owned(),
            limit: 60,
            window: std::time::Duration::from_mins(1),
        };
        let holds = Hold::all(tenant, None, None, (None, Some(&rate)));
        assert_eq!(
            holds[0].to_string(),
            format!("x:{}=0/60/60000", hashed(tenant, "model"))
        );
        let limit = GateLimit {
            running_max: 3,
            ..GateLimit::default()
        };
        assert_eq!(limit.to_string(), "3|0|0|0");
    }
}
