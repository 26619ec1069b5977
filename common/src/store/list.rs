//! Listing jobs, newest first, by filters and a cursor.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Postgres, QueryBuilder};

use super::row::{self, COLUMNS};
use super::{Error, Store, index};
use crate::ids::{AgentId, ConversationId, JobId, ScheduleId, TenantId};
use crate::job::{Job, Kind, StateName};

/// Which jobs; every field that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<StateName>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// In this queue.
    pub queue: Option<String>,
    /// Of this agent.
    pub agent_id: Option<AgentId>,
    /// Of this conversation.
    pub conversation_id: Option<ConversationId>,
    /// Of this schedule.
    pub schedule_id: Option<ScheduleId>,
    /// Submitted by this job.
    pub parent_id: Option<JobId>,
    /// Accepted before this moment.
    pub created_before: Option<DateTime<Utc>>,
    /// With this text in the id, queue, user or metadata.
    pub text: Option<String>,
    /// With these entries in the metadata, compared as text.
    pub metadata: Vec<(String, String)>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
}

impl Filter {
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        if let Some(state) = self.state {
            // Beside the state, what its jobs are found by: a state has no index.
            query.push(" and ").push(match state {
                StateName::Queued => index::IS_QUEUED.to_owned(),
                StateName::Running => index::IS_RUNNING.to_owned(),
                StateName::Scheduled | StateName::Retrying => {
                    format!("due_at is not null and state = '{}'", state.as_str())
                }
                StateName::Waiting => "waits_for is not null and state = 'waiting'".to_owned(),
                StateName::Failed => "error_code is not null and state = 'failed'".to_owned(),
                StateName::Succeeded | StateName::Cancelled => format!("state = '{}'", state.as_str()),
            });
        }
        if let Some(kind) = self.kind {
            query.push(" and kind = ").push_bind(kind.as_str());
        }
        if let Some(queue) = &self.queue {
            query.push(" and queue = ").push_bind(queue.clone());
        }
        if let Some(id) = self.agent_id {
            query.push(" and agent_id = ").push_bind(id);
        }
        if let Some(id) = self.conversation_id {
            query.push(" and conversation_id = ").push_bind(id);
        }
        if let Some(id) = self.schedule_id {
            query.push(" and schedule_id = ").push_bind(id);
        }
        if let Some(id) = self.parent_id {
            query.push(" and parent_id = ").push_bind(id);
        }
        if let Some(at) = self.created_before {
            query.push(" and created_at < ").push_bind(at);
            // The same for the ids, by which partitions are told apart; clocks may differ, but not by a day.
            query
                .push(" and id < ")
                .push_bind(JobId::first_of(at + TimeDelta::days(1)));
        }
        if let Some(user) = &self.user_id {
            query.push(" and user_id = ").push_bind(user.clone());
        }
        for (key, value) in &self.metadata {
            query
                .push(" and metadata ->> ")
                .push_bind(key.clone())
                .push(" = ")
                .push_bind(value.clone());
        }
        if let Some(text) = &self.text {
            query.push(" and strpos(lower(concat_ws(' ', id, queue, user_id, metadata)), lower(");
            query.push_bind(text.clone()).push(")) > 0");
        }
    }
}

impl Store {
    /// Up to `limit` jobs of a tenant that are older than `before`, newest first.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn list(
        &self,
        tenant_id: TenantId,
        filter: &Filter,
        before: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<Job>, Error> {
        let mut query = QueryBuilder::new("select ");
        query
            .push(COLUMNS)
            .push(" from jobs where tenant_id = ")
            .push_bind(tenant_id);
        filter.push(&mut query);
        if let Some(before) = before {
            query.push(" and id < ").push_bind(before);
        }
        query.push(" order by id desc limit ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(self.pool()).await?;
        rows.iter().map(row::job).collect()
    }

    /// How many jobs of a tenant match.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn count(&self, tenant_id: TenantId, filter: &Filter) -> Result<u64, Error> {
        let mut query = QueryBuilder::new("select count(*) from jobs where tenant_id = ");
        query.push_bind(tenant_id);
        filter.push(&mut query);
        let count: i64 = query.build_query_scalar().fetch_one(self.pool()).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
