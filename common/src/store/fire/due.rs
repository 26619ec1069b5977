//! What is due, and what its jobs are made of.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::super::Error;
use super::super::outcomes::{Which, note};
use super::super::schedules::{COLUMNS, schedule};
use crate::agent::{AgentDefinition, AgentStatus};
use crate::ids::{AgentId, ConversationId, JobId, ScheduleId};
use crate::schedule::Schedule;
use crate::schedule::decide::Last;
use crate::schedule::job::{Agent, Means, Talk};

/// Schedules that are locked, and everything that decides about them.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) schedules: Vec<Schedule>,
    /// Those that cannot be read, and why.
    pub(super) unfit: Vec<(ScheduleId, String)>,
    /// Those that were paused because their jobs failed.
    pub(super) paused: u64,
    /// Last jobs that have not ended, and whether they are to be cancelled.
    open: HashMap<JobId, bool>,
    agents: HashMap<AgentId, Agent>,
    talks: HashMap<ConversationId, (Talk, Option<AgentId>)>,
    results: HashMap<ScheduleId, Vec<u8>>,
}

impl Read {
    /// Locks the schedules that are due, `seen` among them, and reads what they need.
    pub(super) async fn due(
        tx: &mut PgConnection,
        now: DateTime<Utc>,
        limit: u32,
        seen: &mut Vec<ScheduleId>,
    ) -> Result<Self, Error> {
        let sql = format!(
            "select {COLUMNS} from schedules where enabled and deleted_at is null and due_at is not null and due_at <= $1
             order by due_at limit $2 for update skip locked"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(now)
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await?;
        let mut read = Self::default();
        for row in &rows {
            let id: ScheduleId = row.try_get("id")?;
            seen.push(id);
            match schedule(row) {
                Ok(schedule) => read.schedules.push(schedule),
                Err(error) => read.unfit.push((id, format!("it cannot be read: {error}"))),
            }
        }
        let paused = read.note(tx).await?;
        read.paused = u64::try_from(paused.len()).unwrap_or(u64::MAX);
        read.schedules.retain(|one| !paused.contains(&one.id));
        read.complete(tx, "skip locked").await?;
        Ok(read)
    }

    /// One schedule that is locked already. It waits for its conversation: whoever holds that waits for no schedule.
    pub(super) async fn of(tx: &mut PgConnection, schedule: Schedule) -> Result<Self, Error> {
        let mut read = Self {
            schedules: vec![schedule],
            ..Self::default()
        };
        read.note(tx).await?;
        read.complete(tx, "").await?;
        Ok(read)
    }

    async fn complete(&mut self, tx: &mut PgConnection, if_locked: &str) -> Result<(), Error> {
        self.read_open(tx).await?;
        self.read_talks(tx, if_locked).await?;
        self.read_agents(tx).await?;
        self.read_results(tx).await
    }

    /// What became of the jobs so far, where the schedule depends on it. Answers which were paused for it.
    async fn note(&self, tx: &mut PgConnection) -> Result<HashSet<ScheduleId>, Error> {
        let ids: Vec<ScheduleId> = self
            .schedules
            .iter()
            .filter(|one| one.pause_after_failures.is_some() || one.target.names_last_result())
            .map(|one| one.id)
            .collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        Ok(note(tx, Which::Of(&ids)).await?.paused.into_iter().collect())
    }

    /// A job that is gone has ended.
    async fn read_open(&mut self, tx: &mut PgConnection) -> Result<(), Error> {
        let ids: Vec<JobId> = self
            .schedules
            .iter()
            .flat_map(|schedule| [schedule.last_job_id, schedule.prior_job_id])
            .flatten()
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "select id, cancel_requested_at is not null as cancelled from jobs
             where id = any($1) and state not in ('succeeded', 'failed', 'cancelled')",
        )
        .bind(ids)
        .fetch_all(tx)
        .await?;
        for row in &rows {
            self.open.insert(row.try_get("id")?, row.try_get("cancelled")?);
        }
        Ok(())
    }

    /// Locks the conversations of turns. A schedule whose conversation somebody else holds is left out of this round:
    /// whoever waited for it could deadlock with a worker that settles several turns.
    async fn read_talks(&mut self, tx: &mut PgConnection, if_locked: &str) -> Result<(), Error> {
        let ids: HashSet<ConversationId> = self
            .schedules
            .iter()
            .filter_map(|schedule| schedule.target.conversation_id)
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<ConversationId> = ids.into_iter().collect();
        let sql = format!(
            "select id, tenant_id, agent_id, agent, user_id from conversations where id = any($1) and deleted_at is null
             order by id for update {if_locked}"
        );
        let locked = sqlx::query(AssertSqlSafe(sql)).bind(&ids).fetch_all(&mut *tx).await?;
        for row in &locked {
            let id: ConversationId = row.try_get("id")?;
            let agent: Option<Json<AgentDefinition>> = row.try_get("agent")?;
            let talk = Talk {
                id,
                tenant_id: row.try_get("tenant_id")?,
                agent: agent.map(|json| json.0),
                user_id: row.try_get("user_id")?,
            };
            self.talks.insert(id, (talk, row.try_get("agent_id")?));
        }
        let there: Vec<ConversationId> =
            sqlx::query_scalar("select id from conversations where id = any($1) and deleted_at is null")
                .bind(&ids)
                .fetch_all(tx)
                .await?;
        let held: HashSet<ConversationId> = there.into_iter().filter(|id| !self.talks.contains_key(id)).collect();
        self.schedules
            .retain(|schedule| schedule.target.conversation_id.is_none_or(|id| !held.contains(&id)));
        Ok(())
    }

    /// The agents that run or answer, as they are now.
    async fn read_agents(&mut self, tx: &mut PgConnection) -> Result<(), Error> {
        let named = self.schedules.iter().filter_map(|schedule| schedule.target.agent_id);
        let answering = self.talks.values().filter_map(|(_, agent_id)| *agent_id);
        let ids: HashSet<AgentId> = named.chain(answering).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "select id, tenant_id, version, definition from agents where id = any($1) and deleted_at is null",
        )
        .bind(ids.into_iter().collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        for row in rows {
            let id: AgentId = row.try_get("id")?;
            let definition: Json<AgentDefinition> = row
                .try_get("definition")
                .map_err(|error| Error::Corrupt(format!("agent {id}: {error}")))?;
            if definition.status == AgentStatus::Active {
                let agent = Agent {
                    id,
                    tenant_id: row.try_get("tenant_id")?,
                    version: u32::try_from(row.try_get::<i32, _>("version")?).unwrap_or(0),
                    definition: definition.0,
                };
                self.agents.insert(id, agent);
            }
        }
        Ok(())
    }

    async fn read_results(&mut self, tx: &mut PgConnection) -> Result<(), Error> {
        let named = self.schedules.iter().filter(|one| one.target.names_last_result());
        let ids: Vec<ScheduleId> = named.map(|one| one.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query("select id, last_result from schedules where id = any($1) and last_result is not null")
            .bind(ids)
            .fetch_all(tx)
            .await?;
        for row in &rows {
            self.results.insert(row.try_get("id")?, row.try_get("last_result")?);
        }
        Ok(())
    }

    /// How far the last jobs of a schedule are.
    pub(super) fn last(&self, schedule: &Schedule) -> Last {
        let is_open = |id: Option<JobId>| id.and_then(|id| self.open.get(&id)).copied();
        match (is_open(schedule.last_job_id), is_open(schedule.prior_job_id)) {
            (None, _) => Last::Ended,
            (Some(true), _) => Last::Cancelled,
            (Some(false), None) => Last::Open,
            (Some(false), Some(_)) => Last::Waiting,
        }
    }

    /// One of its last jobs that has not ended and that nobody asked to cancel.
    pub(super) fn open(&self, schedule: &Schedule) -> Option<JobId> {
        let last = [schedule.last_job_id, schedule.prior_job_id].into_iter().flatten();
        last.into_iter().find(|id| self.open.get(id) == Some(&false))
    }

    /// What the jobs of a schedule are made of.
    pub(super) fn means(&self, schedule: &Schedule) -> Means<'_> {
        let talk = schedule.target.conversation_id.and_then(|id| self.talks.get(&id));
        let agent_id = schedule
            .target
            .agent_id
            .or_else(|| talk.and_then(|(_, agent_id)| *agent_id));
        Means {
            agent: agent_id.and_then(|id| self.agents.get(&id)),
            talk: talk.map(|(talk, _)| talk),
            last_result: self.results.get(&schedule.id).map(Vec::as_slice),
        }
    }
}
