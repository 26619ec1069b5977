//! Reading a job's row.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::error::Error;
use crate::ids::{TenantId, WorkerId};
use crate::job::{
    Backoff, Brief, Concurrency, Failure, FailureCode, Job, JobState, Kind, Rate, StateName, Strategy, Usage, WaitFor,
    Woken,
};

/// The columns that [`job`] reads: everything but the input and the result.
pub(super) const COLUMNS: &str = "id, tenant_id, kind, queue, class, labels, priority, state, attempt, failures, losses, \
     max_attempts, backoff_initial_ms, backoff_factor, backoff_max_ms, retry_on, timeout_ms, run_at, due_at, created_at, \
     queued_at, started_at, finished_at, worker_id, cancel_requested_at, seq, error_code, error_message, usage, \
     concurrency_key, concurrency_limit, concurrency_strategy, rate_key, rate_limit, rate_window_ms, user_id, api_key_id, \
     metadata, agent_id, agent_version, conversation_id, schedule_id, parent_id, redrive_of, redriven_as, waits_for, \
     woken_by";

/// The same columns of table `jobs` where another table is joined.
pub(super) fn qualified() -> String {
    COLUMNS
        .split(", ")
        .map(|column| format!("jobs.{}", column.trim()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The columns that [`brief`] reads.
pub(super) const BRIEF: &str = "id, tenant_id, queue, class, priority, attempt, losses, created_at, agent_id, \
     conversation_id, concurrency_key, concurrency_limit, concurrency_strategy, rate_key, rate_limit, rate_window_ms";

/// What is dispatched of a job, from a row with [`BRIEF`].
pub(super) fn brief(row: &PgRow) -> Result<Brief, Error> {
    Ok(Brief {
        id: row.try_get("id")?,
        tenant_id: row.try_get("tenant_id")?,
        queue: row.try_get("queue")?,
        class: row.try_get("class")?,
        priority: level(row)?,
        attempt: count(row, "attempt")?,
        losses: count(row, "losses")?,
        created_at: row.try_get("created_at")?,
        agent_id: row.try_get("agent_id")?,
        conversation_id: row.try_get("conversation_id")?,
        concurrency: concurrency(row)?,
        rate: rate(row)?,
    })
}

/// A job from a row with [`COLUMNS`].
pub(super) fn job(row: &PgRow) -> Result<Job, Error> {
    let metadata: serde_json::Value = row.try_get("metadata")?;
    let usage: Option<sqlx::types::Json<Usage>> = row.try_get("usage")?;
    Ok(Job {
        id: row.try_get("id")?,
        tenant_id: row.try_get::<TenantId, _>("tenant_id")?,
        kind: parsed(row, "kind", Kind::parse)?,
        queue: row.try_get("queue")?,
        class: row.try_get("class")?,
        labels: row.try_get("labels")?,
        priority: level(row)?,
        state: state(row)?,
        attempt: count(row, "attempt")?,
        failures: count(row, "failures")?,
        losses: count(row, "losses")?,
        max_attempts: count(row, "max_attempts")?,
        backoff: Backoff {
            initial: std::time::Duration::from_millis(number(row, "backoff_initial_ms")?),
            factor: row.try_get("backoff_factor")?,
            max: std::time::Duration::from_millis(number(row, "backoff_max_ms")?),
        },
        retry_on: row.try_get("retry_on")?,
        timeout_ms: number(row, "timeout_ms")?,
        run_at: row.try_get("run_at")?,
        created_at: row.try_get("created_at")?,
        queued_at: row.try_get("queued_at")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        worker_id: row.try_get("worker_id")?,
        cancel_requested_at: row.try_get("cancel_requested_at")?,
        seq: number(row, "seq")?,
        error: failure(row)?,
        usage: usage.map(|json| json.0).unwrap_or_default(),
        concurrency: concurrency(row)?,
        rate: rate(row)?,
        user_id: row.try_get("user_id")?,
        api_key_id: row.try_get("api_key_id")?,
        metadata: metadata.as_object().cloned().unwrap_or_default(),
        agent_id: row.try_get("agent_id")?,
        agent_version: row
            .try_get::<Option<i32>, _>("agent_version")?
            .and_then(|n| u32::try_from(n).ok()),
        conversation_id: row.try_get("conversation_id")?,
        schedule_id: row.try_get("schedule_id")?,
        parent_id: row.try_get("parent_id")?,
        redrive_of: row.try_get("redrive_of")?,
        redriven_as: row.try_get("redriven_as")?,
        waits_for: row
            .try_get::<Option<sqlx::types::Json<WaitFor>>, _>("waits_for")?
            .map(|json| json.0),
        woken_by: row.try_get::<Option<&str>, _>("woken_by")?.and_then(Woken::parse),
    })
}

fn state(row: &PgRow) -> Result<JobState, Error> {
    let time = |column: &str| -> Result<DateTime<Utc>, Error> {
        row.try_get::<Option<DateTime<Utc>>, _>(column)?
            .ok_or_else(|| Error::Corrupt(format!("{column} is null against its constraint")))
    };
    Ok(match parsed(row, "state", StateName::parse)? {
        StateName::Scheduled => JobState::Scheduled {
            due_at: time("due_at")?,
        },
        StateName::Queued => JobState::Queued {
            queued_at: time("queued_at")?,
        },
        StateName::Running => JobState::Running {
            attempt: count(row, "attempt")?,
            worker_id: row
                .try_get::<Option<WorkerId>, _>("worker_id")?
                .ok_or_else(|| Error::Corrupt("running without a worker".to_owned()))?,
            started_at: time("started_at")?,
        },
        StateName::Waiting => JobState::Waiting {
            deadline: row.try_get("due_at")?,
        },
        StateName::Retrying => JobState::Retrying {
            due_at: time("due_at")?,
        },
        StateName::Succeeded => JobState::Succeeded {
            finished_at: time("finished_at")?,
        },
        StateName::Failed => JobState::Failed {
            finished_at: time("finished_at")?,
        },
        StateName::Cancelled => JobState::Cancelled {
            finished_at: time("finished_at")?,
        },
    })
}

fn failure(row: &PgRow) -> Result<Option<Failure>, Error> {
    let Some(code) = row.try_get::<Option<String>, _>("error_code")? else {
        return Ok(None);
    };
    let code = FailureCode::parse(&code).ok_or_else(|| Error::Corrupt(format!("unknown error code {code}")))?;
    Ok(Some(Failure::new(
        code,
        row.try_get::<Option<String>, _>("error_message")?.unwrap_or_default(),
    )))
}

fn concurrency(row: &PgRow) -> Result<Option<Concurrency>, Error> {
    let Some(key) = row.try_get::<Option<String>, _>("concurrency_key")? else {
        return Ok(None);
    };
    let limit = row
        .try_get::<Option<i32>, _>("concurrency_limit")?
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(1);
    let strategy = row
        .try_get::<Option<String>, _>("concurrency_strategy")?
        .unwrap_or_default();
    Ok(Some(Concurrency {
        key,
        limit,
        strategy: Strategy::parse(&strategy).unwrap_or_default(),
    }))
}

fn rate(row: &PgRow) -> Result<Option<Rate>, Error> {
    let (Some(key), Some(limit), Some(window_ms)) = (
        row.try_get::<Option<String>, _>("rate_key")?,
        row.try_get::<Option<i32>, _>("rate_limit")?,
        row.try_get::<Option<i64>, _>("rate_window_ms")?,
    ) else {
        return Ok(None);
    };
    Ok(Some(Rate {
        key,
        limit: u32::try_from(limit).unwrap_or(1),
        window: std::time::Duration::from_millis(u64::try_from(window_ms).unwrap_or(1)),
    }))
}

fn parsed<T>(row: &PgRow, column: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let text: &str = row.try_get(column)?;
    parse(text).ok_or_else(|| Error::Corrupt(format!("unknown {column} {text}")))
}

fn level(row: &PgRow) -> Result<u8, Error> {
    Ok(u8::try_from(row.try_get::<i16, _>("priority")?).unwrap_or(0))
}

fn count(row: &PgRow, column: &str) -> Result<u32, Error> {
    u32::try_from(row.try_get::<i32, _>(column)?).map_err(|_negative| Error::Corrupt(format!("{column} is negative")))
}

fn number(row: &PgRow, column: &str) -> Result<u64, Error> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_negative| Error::Corrupt(format!("{column} is negative")))
}

/// Milliseconds as Postgres stores them.
pub(super) fn ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// An unsigned number as Postgres stores it.
pub(super) fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// An unsigned number as Postgres stores it.
pub(super) fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
