//! The statement that inserts jobs: a row for each, and one in `queued_jobs` for each that is queued.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgArguments;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Postgres};

use crate::job::spec::JobSpec;
use crate::job::{Concurrency, Links, NewJob, Rate};
use crate::store::row::{int, ms};
use crate::store::{Error, index};

/// One value of a column for each job.
fn column<'a, T: 'a>(jobs: &[&'a NewJob], value: impl Fn(&'a NewJob) -> T) -> Vec<T> {
    jobs.iter().map(|job| value(job)).collect()
}

/// What each job has of its own, with its type.
const OWN: [(&str, &str); 4] = [
    ("id", "uuid"),
    ("created_at", "timestamptz"),
    ("input", "bytea"),
    ("metadata", "jsonb"),
];

/// What every job has, and most jobs that come together have alike.
const ALIKE: [(&str, &str); 13] = [
    ("tenant_id", "uuid"),
    ("kind", "text"),
    ("queue", "text"),
    ("class", "text"),
    ("labels", "text"),
    ("priority", "smallint"),
    ("max_attempts", "integer"),
    ("backoff_initial_ms", "bigint"),
    ("backoff_factor", "float8"),
    ("backoff_max_ms", "bigint"),
    ("retry_on", "text"),
    ("timeout_ms", "bigint"),
    ("api_key_id", "uuid"),
];

/// What most jobs do not have. Each array of a statement costs something for itself and something for each job, so those that
/// hold nothing are left out.
const RARE: [(&str, &str); 15] = [
    ("run_at", "timestamptz"),
    ("due_at", "timestamptz"),
    ("concurrency_key", "text"),
    ("concurrency_limit", "integer"),
    ("concurrency_strategy", "text"),
    ("user_id", "text"),
    ("agent_id", "uuid"),
    ("agent_version", "integer"),
    ("conversation_id", "uuid"),
    ("schedule_id", "uuid"),
    ("parent_id", "uuid"),
    ("redrive_of", "uuid"),
    ("rate_key", "text"),
    ("rate_limit", "integer"),
    ("rate_window_ms", "bigint"),
];

/// The statement for jobs that have nothing rare and are alike, the one for those that are not, and the one for all others.
static STATEMENTS: LazyLock<[String; 3]> = LazyLock::new(|| {
    [
        statement(&ALIKE, &OWN, ("", "")),
        statement(&[], &[&ALIKE[..], &OWN].concat(), ("", "")),
        statement(&[], &[&ALIKE[..], &OWN, &RARE].concat(), ("", "")),
    ]
});

/// A row for each job, and one in `queued_jobs` for each that is queued. Of the columns `once` there is one value for all
/// jobs, of those in `each` an array. `before` are common table expressions, and `only` the clause that chooses by them.
fn statement(once: &[(&str, &str)], each: &[(&str, &str)], (before, only): (&str, &str)) -> String {
    let list = |names: Vec<&str>| names.join(", ");
    let names = list(once.iter().chain(each).map(|(name, _)| *name).collect());
    let arrays = each
        .iter()
        .zip(once.len() + 1..)
        .map(|((_, kind), place)| format!("${place}::{kind}[]"));
    let value = |name: &str| -> String {
        match once.iter().zip(1..).find(|((column, _), _)| *column == name) {
            Some(((_, kind), place)) => format!("${place}::{kind}"),
            None => name.to_owned(),
        }
    };
    let values = once.iter().chain(each).map(|(name, _)| match *name {
        // An array of arrays must be as wide everywhere.
        "labels" | "retry_on" => format!("string_to_array({}, ',')", value(name)),
        _ => value(name),
    });
    let queued = ["tenant_id", "queue", "class", "priority", "id"].map(value).join(", ");
    let is_due_later = each.iter().any(|(name, _)| *name == "due_at");
    let (state, queued_at, gate) = if is_due_later {
        (
            "case when due_at is null then 'queued' else 'scheduled' end",
            "case when due_at is null then created_at end",
            index::GATE,
        )
    } else {
        ("'queued'", "created_at", "null")
    };
    format!(
        "with {before} t as materialized (
            select *, {state} as state, {queued_at} as queued_at from unnest({arrays}) as t({columns}) {only}
         ), queued as (
            insert into queued_jobs (tenant_id, queue, class, priority, id, gate)
            select {queued}, {gate} from t where state = 'queued'
         )
         insert into jobs ({names}, state, queued_at, seq) select {values}, state, queued_at, 1 from t",
        arrays = arrays.collect::<Vec<_>>().join(", "),
        columns = list(each.iter().map(|(name, _)| *name).collect()),
        values = values.collect::<Vec<_>>().join(", "),
    )
}

pub(in crate::store) type Insert = sqlx::query::Query<'static, Postgres, PgArguments>;

/// Values of a statement of [`statement_if`] before its own.
pub(in crate::store) const OF_JOBS: usize = ALIKE.len() + OWN.len() + RARE.len();

/// The statement that inserts one job of any sort if the expressions `before` bring what `only` asks for. Its first
/// [`OF_JOBS`] values are the job's.
pub(in crate::store) fn statement_if(before: &str, only: &str) -> String {
    statement(&[], &[&ALIKE[..], &OWN, &RARE].concat(), (before, only))
}

/// A statement of [`statement_if`] with the job's values.
pub(in crate::store) fn insert_if(statement: &'static str, job: &NewJob) -> Insert {
    bind_all(sqlx::query(AssertSqlSafe(statement)), &[job])
}

/// Inserts jobs on a connection, which may be in a transaction.
pub(in crate::store) async fn insert_jobs(connection: &mut PgConnection, jobs: &[&NewJob]) -> Result<(), Error> {
    let Some(first) = jobs.first() else { return Ok(()) };
    let [alike, plain, whole] = &*STATEMENTS;
    let query = if !jobs.iter().all(|job| is_plain(job)) {
        bind_all(sqlx::query(AssertSqlSafe(whole.as_str())), jobs)
    } else if jobs.iter().all(|job| are_alike(job, first)) {
        bind_own(bind_once(sqlx::query(AssertSqlSafe(alike.as_str())), first), jobs)
    } else {
        bind_own(bind_each(sqlx::query(AssertSqlSafe(plain.as_str())), jobs), jobs)
    };
    query.execute(connection).await?;
    Ok(())
}

fn later(job: &NewJob) -> Option<DateTime<Utc>> {
    job.spec.run_at.filter(|run_at| *run_at > job.created_at)
}

/// Whether it has nothing of what is [`RARE`].
fn is_plain(job: &NewJob) -> bool {
    let spec = &job.spec;
    let has_key = spec.concurrency.is_some() || spec.rate.is_some() || spec.user_id.is_some();
    spec.run_at.is_none() && !has_key && job.links == Links::default()
}

/// Whether two jobs have the same of all that is [`ALIKE`]. Every field is named, so that none is forgotten.
fn are_alike(job: &NewJob, other: &NewJob) -> bool {
    let NewJob {
        tenant_id,
        api_key_id,
        class,
        spec,
        id: _,
        created_at: _,
        input: _,
        links: _,
    } = job;
    let JobSpec {
        kind,
        queue,
        priority,
        labels,
        timeout,
        max_attempts,
        backoff,
        retry_on,
        metadata: _,
        run_at: _,
        concurrency: _,
        rate: _,
        user_id: _,
    } = spec;
    let its = &other.spec;
    (tenant_id, api_key_id, class) == (&other.tenant_id, &other.api_key_id, &other.class)
        && (kind, queue, priority, labels) == (&its.kind, &its.queue, &its.priority, &its.labels)
        && (timeout, max_attempts, backoff, retry_on) == (&its.timeout, &its.max_attempts, &its.backoff, &its.retry_on)
}

fn bind_all(query: Insert, jobs: &[&NewJob]) -> Insert {
    bind_rare(bind_own(bind_each(query, jobs), jobs), jobs)
}

fn bind_once(query: Insert, job: &NewJob) -> Insert {
    let spec = &job.spec;
    query
        .bind(job.tenant_id)
        .bind(spec.kind.as_str())
        .bind(spec.queue.as_str())
        .bind(job.class.as_str())
        .bind(spec.labels.join(","))
        .bind(i16::from(spec.priority))
        .bind(int(spec.max_attempts))
        .bind(ms(spec.backoff.initial))
        .bind(spec.backoff.factor)
        .bind(ms(spec.backoff.max))
        .bind(spec.retry_on.join(","))
        .bind(ms(spec.timeout))
        .bind(job.api_key_id)
}

fn bind_each(query: Insert, jobs: &[&NewJob]) -> Insert {
    query
        .bind(column(jobs, |job| job.tenant_id))
        .bind(column(jobs, |job| job.spec.kind.as_str()))
        .bind(column(jobs, |job| job.spec.queue.as_str()))
        .bind(column(jobs, |job| job.class.as_str()))
        .bind(column(jobs, |job| job.spec.labels.join(",")))
        .bind(column(jobs, |job| i16::from(job.spec.priority)))
        .bind(column(jobs, |job| int(job.spec.max_attempts)))
        .bind(column(jobs, |job| ms(job.spec.backoff.initial)))
        .bind(column(jobs, |job| job.spec.backoff.factor))
        .bind(column(jobs, |job| ms(job.spec.backoff.max)))
        .bind(column(jobs, |job| job.spec.retry_on.join(",")))
        .bind(column(jobs, |job| ms(job.spec.timeout)))
        .bind(column(jobs, |job| job.api_key_id))
}

fn bind_own(query: Insert, jobs: &[&NewJob]) -> Insert {
    query
        .bind(column(jobs, |job| job.id))
        .bind(column(jobs, |job| job.created_at))
        .bind(column(jobs, |job| job.input.as_slice()))
        .bind(column(jobs, |job| Json(&job.spec.metadata)))
}

fn bind_rare(query: Insert, jobs: &[&NewJob]) -> Insert {
    let limits = |job: &NewJob| -> Option<Concurrency> { job.spec.concurrency.clone() };
    let rate = |job: &NewJob| -> Option<Rate> { job.spec.rate.clone() };
    query
        .bind(column(jobs, |job| job.spec.run_at))
        .bind(column(jobs, later))
        .bind(column(jobs, |job| limits(job).map(|c| c.key)))
        .bind(column(jobs, |job| limits(job).map(|c| int(c.limit))))
        .bind(column(jobs, |job| limits(job).map(|c| c.strategy.as_str())))
        .bind(column(jobs, |job| job.spec.user_id.as_deref()))
        .bind(column(jobs, |job| job.links.agent.map(|(id, _)| id)))
        .bind(column(jobs, |job| job.links.agent.map(|(_, version)| int(version))))
        .bind(column(jobs, |job| job.links.conversation_id))
        .bind(column(jobs, |job| job.links.schedule_id))
        .bind(column(jobs, |job| job.links.parent_id))
        .bind(column(jobs, |job| job.links.redrive_of))
        .bind(column(jobs, |job| rate(job).map(|rate| rate.key)))
        .bind(column(jobs, |job| rate(job).map(|rate| int(rate.limit))))
        .bind(column(jobs, |job| rate(job).map(|rate| ms(rate.window))))
}
