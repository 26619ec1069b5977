//! Which jobs: the query of a list, and the body of what acts on many.

use chrono::{DateTime, Datelike as _, Utc};
use common::ids::{AgentId, ConversationId, JobId, ScheduleId};
use common::job::{Kind, StateName};
use common::store::list::Filter;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::extract::Params;
use crate::problem::{FieldError, Problem};

/// The query of `GET /jobs`. Metadata is matched by `metadata.<key>=<value>`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is used: parameters are read one by one")]
pub(super) struct ListQuery {
    /// In this state.
    state: Option<String>,
    /// Of this kind.
    kind: Option<String>,
    /// In this queue.
    queue: Option<String>,
    /// Of this agent.
    agent_id: Option<String>,
    /// Of this conversation.
    conversation_id: Option<String>,
    /// Of this schedule.
    schedule_id: Option<String>,
    /// Submitted by this job.
    parent_id: Option<String>,
    /// Of this user.
    user_id: Option<String>,
    /// With this text in the id, queue, user or metadata.
    q: Option<String>,
    /// Most items, 1 to 200; 50.
    limit: Option<u32>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Takes the filter out of a query.
pub(super) fn from_params(params: &mut Params) -> Filter {
    Filter {
        state: params.read_as("state", "a state of jobs", StateName::parse),
        kind: params.read_as("kind", "a kind of jobs", Kind::parse),
        queue: params.text("queue"),
        agent_id: params.parsed::<AgentId>("agent_id", "an id"),
        conversation_id: params.parsed::<ConversationId>("conversation_id", "an id"),
        schedule_id: params.parsed::<ScheduleId>("schedule_id", "an id"),
        parent_id: params.parsed::<JobId>("parent_id", "an id"),
        created_before: None,
        text: params.text("q"),
        metadata: params.prefixed("metadata."),
        user_id: params.text("user_id"),
    }
}

/// Which jobs are acted on; every field that is given must hold, and at least one must be given.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ManyRequest {
    /// Only count.
    pub(super) dry_run: bool,
    /// In this state.
    #[schema(value_type = Option<String>)]
    state: Option<StateName>,
    /// Of this kind.
    #[schema(value_type = Option<String>)]
    kind: Option<Kind>,
    /// In this queue.
    queue: Option<String>,
    /// Of this agent.
    #[schema(value_type = Option<String>)]
    agent_id: Option<AgentId>,
    /// Of this conversation.
    #[schema(value_type = Option<String>)]
    conversation_id: Option<ConversationId>,
    /// Of this schedule.
    #[schema(value_type = Option<String>)]
    schedule_id: Option<ScheduleId>,
    /// Submitted by this job.
    #[schema(value_type = Option<String>)]
    parent_id: Option<JobId>,
    /// Accepted before this moment; the beginning of the call. What a call answers goes on with the same jobs.
    created_before: Option<DateTime<Utc>>,
    /// Of this user.
    user_id: Option<String>,
    /// With this text in the id, queue, user or metadata.
    q: Option<String>,
    /// With these entries in the metadata.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
}

impl ManyRequest {
    /// The filter, whose state must be one of `states`.
    ///
    /// # Errors
    /// 422 when nothing is given, when a text holds NUL, for a time that no job is of, or for another state.
    pub(super) fn filter(&self, states: &[StateName], now: DateTime<Utc>) -> Result<Filter, Problem> {
        let metadata: Vec<(String, String)> = self
            .metadata
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), text(v)))
            .collect();
        let filter = Filter {
            state: self.state,
            kind: self.kind,
            queue: self.queue.clone(),
            agent_id: self.agent_id,
            conversation_id: self.conversation_id,
            schedule_id: self.schedule_id,
            parent_id: self.parent_id,
            created_before: Some(self.created_before.unwrap_or(now)),
            text: self.q.clone(),
            metadata,
            user_id: self.user_id.clone(),
        };
        let mut errors = Vec::new();
        if filter
            .created_before
            .is_some_and(|at| !(1970..=9999).contains(&at.year()))
        {
            errors.push(FieldError::body("/created_before", "is of a year from 1970 to 9999"));
        }
        if self.state.is_some_and(|state| !states.contains(&state)) {
            let names: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
            errors.push(FieldError::body("/state", format!("is one of {}", names.join(", "))));
        }
        let texts = [
            ("/queue", &filter.queue),
            ("/user_id", &filter.user_id),
            ("/q", &filter.text),
        ];
        for (pointer, _) in texts
            .iter()
            .filter(|(_, text)| text.as_deref().is_some_and(|text| text.contains('\0')))
        {
            errors.push(FieldError::body(*pointer, "contains NUL"));
        }
        if filter
            .metadata
            .iter()
            .any(|(key, value)| key.contains('\0') || value.contains('\0'))
        {
            errors.push(FieldError::body("/metadata", "contains NUL"));
        }
        if self.is_empty() {
            errors.push(FieldError::body(
                "",
                "gives no filter: name at least one field besides dry_run, q and metadata not empty",
            ));
        }
        if errors.is_empty() {
            Ok(filter)
        } else {
            Err(Problem::invalid(errors))
        }
    }

    fn is_empty(&self) -> bool {
        let ids = [
            self.agent_id.is_some(),
            self.conversation_id.is_some(),
            self.schedule_id.is_some(),
            self.parent_id.is_some(),
        ];
        let texts = [
            self.queue.is_some(),
            self.user_id.is_some(),
            // Every job has the empty text, and all of no entries: whoever means all of them says so by their states.
            self.q.as_ref().is_some_and(|text| !text.is_empty()),
            self.metadata.as_ref().is_some_and(|entries| !entries.is_empty()),
        ];
        self.state.is_none() && self.kind.is_none() && !ids.contains(&true) && !texts.contains(&true)
    }
}

/// As Postgres' `->>` shows a value.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
