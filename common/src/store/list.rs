//! Listing jobs, newest first, by filters and a cursor.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Postgres, QueryBuilder};

use super::row::{self, COLUMNS};
use super::{Error, Store};
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

/// Which of the jobs that match are picked, and what of them.
#[derive(Debug)]
pub(super) struct Pick<'a> {
    /// SQL: the columns, unqualified; the statement names them as those of `jobs`.
    pub(super) columns: &'a str,
    /// SQL: a condition beside the filter's, beginning with `and`, or nothing.
    pub(super) and: &'a str,
    /// In which order.
    pub(super) order: Order,
    /// How many, at most.
    pub(super) limit: Option<i64>,
    /// SQL: what locks them, or nothing.
    pub(super) lock: &'a str,
}

/// An order of jobs, by the time of their acceptance.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// As they are found.
    Any,
    /// The oldest first.
    OldestFirst,
    /// The newest first, of those before this one.
    NewestFirst(Option<JobId>),
}

impl Order {
    /// Pushes the condition that it makes on the key.
    fn push_condition(self, query: &mut QueryBuilder<Postgres>, key: &str) {
        if let Self::NewestFirst(Some(before)) = self {
            query.push(" and ").push(key).push(" < ").push_bind(before);
        }
    }

    fn push(self, query: &mut QueryBuilder<Postgres>, key: &str) {
        match self {
            Self::Any => {}
            Self::OldestFirst => drop(query.push(" order by ").push(key)),
            Self::NewestFirst(_) => drop(query.push(" order by ").push(key).push(" desc")),
        }
    }
}

impl Filter {
    /// Pushes the rest of a statement whose columns are said: ` from …`, down to the limit.
    ///
    /// What is queued or runs is looked up by its key, one row after the other, which the limit of one forces: what the
    /// planner knows of today's rows and of the backlog is old whenever there are suddenly many, and where it believes that
    /// there are hardly any it reads all of them for each. The children of a job and the turns of a conversation have an index of
    /// their own, and are few.
    pub(super) fn push_from(&self, query: &mut QueryBuilder<Postgres>, tenant_id: TenantId, pick: &Pick<'_>) {
        let has_index = self.parent_id.is_some() || self.conversation_id.is_some();
        let keys = match self.state.filter(|_| !has_index) {
            Some(StateName::Queued) => " from (select id from queued_jobs where tenant_id = ",
            Some(StateName::Running) => {
                " from (select id from (select distinct unnest(job_ids) as id from handouts) as held where true"
            }
            _ => {
                query.push(" from jobs where tenant_id = ").push_bind(tenant_id);
                self.push(query);
                query.push(pick.and);
                pick.order.push_condition(query, "id");
                pick.order.push(query, "id");
                push_limit(query, pick.limit);
                query.push(pick.lock);
                return;
            }
        };
        query.push(keys);
        if self.state == Some(StateName::Queued) {
            query.push_bind(tenant_id);
            if let Some(queue) = &self.queue {
                query.push(" and queue = ").push_bind(queue.clone());
            }
        }
        pick.order.push_condition(query, "id");
        pick.order.push(query, "id");
        query.push(") as key cross join lateral (select ").push(pick.columns);
        query
            .push(" from jobs where jobs.id = key.id and tenant_id = ")
            .push_bind(tenant_id);
        self.push(query);
        query.push(pick.and).push(" limit 1").push(pick.lock).push(") as jobs");
        pick.order.push(query, "key.id");
        push_limit(query, pick.limit);
    }

    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        if let Some(state) = self.state {
            // Beside the state, what its jobs are found by: a state has no index. For two of them that is a source of its own.
            query.push(" and ").push(match state {
                StateName::Scheduled | StateName::Retrying => {
                    format!("due_at is not null and state = '{}'", state.as_str())
                }
                StateName::Waiting => "waits_for is not null and state = 'waiting'".to_owned(),
                StateName::Failed => "error_code is not null and state = 'failed'".to_owned(),
                _ => format!("state = '{}'", state.as_str()),
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

fn push_limit(query: &mut QueryBuilder<Postgres>, limit: Option<i64>) {
    if let Some(limit) = limit {
        query.push(" limit ").push_bind(limit);
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
        query.push(row::qualified());
        let pick = Pick {
            columns: COLUMNS,
            and: "",
            order: Order::NewestFirst(before),
            limit: Some(i64::from(limit)),
            lock: "",
        };
        filter.push_from(&mut query, tenant_id, &pick);
        let rows = query.build().fetch_all(self.pool()).await?;
        rows.iter().map(row::job).collect()
    }

    /// How many jobs of a tenant match.
    ///
    /// # Errors
    /// When Postgres is away.
    pub async fn count(&self, tenant_id: TenantId, filter: &Filter) -> Result<u64, Error> {
        let mut query = QueryBuilder::new("select count(*)");
        let pick = Pick {
            columns: "id",
            and: "",
            order: Order::Any,
            limit: None,
            lock: "",
        };
        filter.push_from(&mut query, tenant_id, &pick);
        let count: i64 = query.build_query_scalar().fetch_one(self.pool()).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(filter: &Filter) -> String {
        let mut query = QueryBuilder::new("select id");
        let pick = Pick {
            columns: "id",
            and: "",
            order: Order::Any,
            limit: None,
            lock: "",
        };
        filter.push_from(&mut query, TenantId::new(), &pick);
        query.sql().as_str().to_owned()
    }

    #[test]
    fn the_children_of_a_job_are_not_looked_for_in_the_whole_backlog() {
        for state in [StateName::Queued, StateName::Running] {
            let mut filter = Filter {
                state: Some(state),
                ..Filter::default()
            };
            let one_by_one = ["queued_jobs", "handouts"];
            assert!(one_by_one.iter().any(|table| statement(&filter).contains(table)));
            filter.parent_id = Some(JobId::new());
            let sql = statement(&filter);
            assert!(!one_by_one.iter().any(|table| sql.contains(table)), "{sql}");
            assert!(sql.contains("parent_id = ") && sql.contains(&format!("state = '{}'", state.as_str())));
        }
    }
}
