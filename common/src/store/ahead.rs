//! What schedules are about to fire, for those who get ready before.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::Row;
use sqlx::types::Json;

use super::workers::SILENT_AFTER;
use super::{Error, Store};
use crate::agent::{AgentDefinition, DEFAULT_ENVIRONMENT, Harness};
use crate::ids::{AgentId, ConversationId};
use crate::job::Kind;
use crate::schedule::Target;

/// Fires that are looked at: no worker starts more sandboxes ahead.
const MOST: i64 = 1_000;

/// What an input says about its sandbox; the rest of it is not looked at.
#[derive(Deserialize)]
struct Input {
    environment: Option<String>,
    agent: Option<AgentDefinition>,
}

impl Store {
    /// How many sandboxes of each environment the fires within `ahead` will want of each worker that has sandboxes, taken as
    /// if they went to all alike.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn fires_ahead(&self, now: DateTime<Utc>, ahead: Duration) -> Result<BTreeMap<String, u32>, Error> {
        let rows = sqlx::query(
            "select target, (select count(*) from workers
                             where stopped_at is null and seen_at > $4 and driver <> 'none') as workers
             from schedules where enabled and deleted_at is null and due_at > $1 and due_at <= $2
             order by due_at limit $3",
        )
        .bind(now)
        .bind(now + ahead)
        .bind(MOST)
        .bind(now - SILENT_AFTER)
        .fetch_all(self.pool())
        .await?;
        let mut workers = 1;
        let mut targets: Vec<Target> = Vec::with_capacity(rows.len());
        for row in &rows {
            workers = u32::try_from(row.try_get::<i64, _>("workers")?).unwrap_or(1).max(1);
            // One that cannot be read is for the duty that fires it to report.
            targets.extend(serde_json::from_slice(row.try_get("target")?).ok());
        }
        let talks = self.agents_of(&targets).await?;
        let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
        for environment in targets.iter().filter_map(|target| environment(target, &talks)) {
            *wanted.entry(environment).or_default() += 1;
        }
        let shared = |(name, fires): (String, u32)| (name, fires.div_ceil(workers));
        Ok(wanted.into_iter().map(shared).collect())
    }

    /// The saved agents that targets name, and those that answer in their conversations.
    async fn agents_of(&self, targets: &[Target]) -> Result<Agents, Error> {
        let ids: Vec<AgentId> = targets.iter().filter_map(|target| target.agent_id).collect();
        let talks: Vec<ConversationId> = targets.iter().filter_map(|target| target.conversation_id).collect();
        let mut agents = Agents::default();
        if ids.is_empty() && talks.is_empty() {
            return Ok(agents);
        }
        let rows = sqlx::query(
            "select id as agent_id, null::uuid as talk_id, definition from agents where id = any($1)
             union all
             select null, c.id, coalesce(c.agent, a.definition) from conversations c left join agents a on a.id = c.agent_id
             where c.id = any($2)",
        )
        .bind(&ids)
        .bind(&talks)
        .fetch_all(self.pool())
        .await?;
        for row in &rows {
            let Ok(Json(definition)) = row.try_get::<Json<AgentDefinition>, _>("definition") else {
                continue;
            };
            match (row.try_get("agent_id")?, row.try_get("talk_id")?) {
                (Some(id), _) => drop(agents.saved.insert(id, definition)),
                (None, Some(id)) => drop(agents.talks.insert(id, definition)),
                (None, None) => {}
            }
        }
        Ok(agents)
    }
}

#[derive(Default)]
struct Agents {
    saved: HashMap<AgentId, AgentDefinition>,
    talks: HashMap<ConversationId, AgentDefinition>,
}

/// The environment whose sandbox a fire will want, if any.
fn environment(target: &Target, agents: &Agents) -> Option<String> {
    let input: Option<Input> = serde_json::from_str(target.input.get()).ok();
    if target.spec.kind == Kind::Exec {
        let named = input.and_then(|input| input.environment);
        return Some(named.unwrap_or_else(|| DEFAULT_ENVIRONMENT.to_owned()));
    }
    let agent = match (target.conversation_id, target.agent_id) {
        (Some(id), _) => agents.talks.get(&id).cloned(),
        (None, Some(id)) => agents.saved.get(&id).cloned(),
        (None, None) => input.and_then(|input| input.agent),
    };
    agent
        .filter(|agent| agent.harness != Harness::Chat)
        .map(|agent| agent.environment)
}
