//! The fields that every submission has, whatever its kind.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::job::exec::is_name;
use common::job::spec::JobSpec;
use common::job::{Backoff, Concurrency, Kind, Rate, RetryRule, Strategy};
use common::store::tenants::Tenant;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::config::Submit;
use crate::extract::{from_json, from_json_beside};
use crate::problem::{FieldError, Problem};
use crate::routes::limits::RateView;

const LABELS_MAX: usize = 16;
/// More than there are error codes.
const RULES_MAX: usize = 32;
const ATTEMPTS_MAX: u32 = 100;
const BACKOFF_MAX: Duration = Duration::from_hours(24);
const CONCURRENCY_MAX: u32 = 10_000;
const METADATA_KEYS_MAX: usize = 64;
const METADATA_BYTES_MAX: usize = 16 * 1024;

/// What a submission may say about how its job is run. `null` is the default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobFields {
    /// The named queue; `default`.
    pub queue: Option<String>,
    /// 0 to 9, 9 first; 5.
    #[schema(maximum = 9)]
    pub priority: Option<u8>,
    /// When it may run at the earliest, at most 90 days ahead; this or `delay`.
    pub run_at: Option<DateTime<Utc>>,
    /// How long after its submission it may run at the earliest, such as `90s`; this or `run_at`.
    #[schema(example = "90s")]
    pub delay: Option<String>,
    /// Labels that its worker must have.
    pub labels: Option<Vec<String>>,
    /// Longest duration of one attempt; `60s`.
    #[schema(example = "60s")]
    pub timeout: Option<String>,
    /// Failures after which it is not tried again; 3.
    #[schema(minimum = 1, maximum = 100)]
    pub max_attempts: Option<u32>,
    /// How long it waits between failures.
    #[schema(value_type = Option<BackoffFields>)]
    pub backoff: Option<Backoff>,
    /// Error codes that are retried although they usually are not, and with a `!` before them those that are not although
    /// they usually are: `["timeout", "!sandbox_failed"]`; at most 32. With `!worker_lost` a job whose worker dies fails.
    #[schema(value_type = Option<Vec<String>>)]
    pub retry_on: Option<Vec<RetryRule>>,
    /// How many jobs of one key may run at once.
    pub concurrency: Option<ConcurrencyFields>,
    /// How many jobs of one key may start within a window of time.
    pub rate: Option<RateFields>,
    /// The submitter's own name for its user.
    pub user_id: Option<String>,
    /// The submitter's own notes: at most 64 keys and 16 KiB.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// How long a job waits between failures: full jitter up to `initial × factor^n`, at most `max`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; the type itself is common's")]
pub(crate) struct BackoffFields {
    /// Upper bound of the first delay; `1s`.
    initial: Option<String>,
    /// Growth with each failure, 1 to 10; 2.
    factor: Option<f64>,
    /// Upper bound of every delay; `5m`.
    max: Option<String>,
}

/// A limit on how many jobs of one key run at once.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConcurrencyFields {
    /// The key; `null` is no limit.
    pub key: Option<String>,
    /// How many; 1.
    pub limit: Option<u32>,
    /// What happens when no place is free: `queue`, `reject` or `cancel_running`.
    #[schema(value_type = Option<String>)]
    pub strategy: Option<Strategy>,
}

/// A limit on how many jobs of one key start within any window of time.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateFields {
    /// The key; `null` is no limit.
    pub key: Option<String>,
    /// How many, 1 to 10,000; 1.
    pub limit: Option<u32>,
    /// How long the window is, 1ms to 24h; 1s.
    #[schema(example = "1m")]
    pub window: Option<String>,
}

/// What the defaults and limits of a submission depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    pub(crate) submit: &'a Submit,
    pub(crate) tenant: &'a Tenant,
    pub(crate) now: DateTime<Utc>,
    pub(crate) timeout_default: Duration,
    pub(crate) timeout_max: Duration,
}

impl JobFields {
    /// The specification of a job of this kind.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn spec(self, kind: Kind, bounds: Bounds<'_>) -> Result<JobSpec, Vec<FieldError>> {
        let mut errors = self.faults(bounds);
        let run_at = or_note(self.start(bounds), &mut errors);
        let timeout = or_note(self.checked_timeout(bounds), &mut errors);
        let rate = self.rate.as_ref().map(RateFields::checked).transpose();
        let rate = rate.unwrap_or_else(|faults| {
            errors.extend(faults);
            None
        });
        if !errors.is_empty() {
            return Err(errors);
        }
        let base = JobSpec::new(kind);
        let mut labels = self.labels.unwrap_or_default();
        labels.sort_unstable();
        labels.dedup();
        Ok(JobSpec {
            kind,
            queue: self.queue.unwrap_or(base.queue),
            priority: self
                .priority
                .unwrap_or_else(|| base.priority.min(bounds.tenant.priority_max)),
            run_at: run_at.flatten(),
            labels,
            timeout: timeout.unwrap_or(bounds.timeout_default),
            max_attempts: self.max_attempts.unwrap_or(base.max_attempts),
            backoff: self.backoff.unwrap_or_default(),
            retry_on: self
                .retry_on
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect(),
            concurrency: self.concurrency.and_then(ConcurrencyFields::into_concurrency),
            rate: rate.flatten(),
            user_id: self.user_id,
            metadata: self.metadata.unwrap_or_default(),
        })
    }

    fn faults(&self, bounds: Bounds<'_>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut add = |pointer: &str, detail: String| errors.push(FieldError::body(pointer, detail));
        if self.queue.as_deref().is_some_and(|queue| !is_name(queue)) {
            add(
                "/queue",
                "is 1 to 63 letters, digits, dots, hyphens or underscores".to_owned(),
            );
        }
        match self.priority {
            Some(priority) if priority > 9 => add("/priority", "is between 0 and 9".to_owned()),
            Some(priority) if priority > bounds.tenant.priority_max => {
                add(
                    "/priority",
                    format!("is above {}, the tenant's highest", bounds.tenant.priority_max),
                );
            }
            _ => {}
        }
        let labels = self.labels.as_deref().unwrap_or_default();
        if labels.len() > LABELS_MAX {
            add("/labels", format!("has more than {LABELS_MAX} items"));
        }
        let unnamed = labels.iter().enumerate().filter(|(_, label)| !is_name(label));
        for (index, _) in unnamed.take(LABELS_MAX) {
            add(
                &format!("/labels/{index}"),
                "is 1 to 63 letters, digits, dots, hyphens or underscores".to_owned(),
            );
        }
        let rules = self.retry_on.as_deref().unwrap_or_default();
        if rules.len() > RULES_MAX {
            add("/retry_on", format!("has more than {RULES_MAX} items"));
        }
        if self
            .max_attempts
            .is_some_and(|attempts| !(1..=ATTEMPTS_MAX).contains(&attempts))
        {
            add("/max_attempts", format!("is between 1 and {ATTEMPTS_MAX}"));
        }
        if let Some(backoff) = &self.backoff {
            if !(1.0..=10.0).contains(&backoff.factor) {
                add("/backoff/factor", "is between 1 and 10".to_owned());
            }
            if backoff.max > BACKOFF_MAX {
                add("/backoff/max", "is at most 24h".to_owned());
            }
            if backoff.initial > backoff.max {
                add("/backoff/initial", "is not above backoff.max".to_owned());
            }
        }
        if self.user_id.as_deref().is_some_and(|user| !is_short_text(user)) {
            add("/user_id", "is 1 to 200 characters without NUL".to_owned());
        }
        errors.extend(self.concurrency.iter().flat_map(ConcurrencyFields::faults));
        errors.extend(self.metadata.iter().flat_map(metadata_faults));
        errors
    }

    /// When it may run; `None` is at once.
    fn start(&self, bounds: Bounds<'_>) -> Result<Option<DateTime<Utc>>, FieldError> {
        let latest = bounds.now + bounds.submit.run_at_max;
        let days = bounds.submit.run_at_max.as_secs() / 86_400;
        match (&self.run_at, &self.delay) {
            (Some(_), Some(_)) => Err(FieldError::body("/delay", "cannot be combined with run_at")),
            (Some(run_at), None) if *run_at > latest => {
                Err(FieldError::body("/run_at", format!("is more than {days} days ahead")))
            }
            (Some(run_at), None) if *run_at < DateTime::UNIX_EPOCH => {
                Err(FieldError::body("/run_at", "is before 1970"))
            }
            (Some(run_at), None) => Ok(DateTime::from_timestamp_micros(run_at.timestamp_micros())),
            (None, Some(delay)) => {
                let delay = duration("/delay", delay)?;
                if delay > bounds.submit.run_at_max {
                    return Err(FieldError::body("/delay", format!("is more than {days} days")));
                }
                Ok(Some(bounds.now + delay).filter(|_| !delay.is_zero()))
            }
            (None, None) => Ok(None),
        }
    }

    fn checked_timeout(&self, bounds: Bounds<'_>) -> Result<Duration, FieldError> {
        let Some(text) = &self.timeout else {
            return Ok(bounds.timeout_default);
        };
        let timeout = duration("/timeout", text)?;
        if (Duration::from_secs(1)..=bounds.timeout_max).contains(&timeout) {
            Ok(timeout)
        } else {
            let max = humantime::format_duration(bounds.timeout_max);
            Err(FieldError::body("/timeout", format!("is between 1s and {max}")))
        }
    }
}

impl ConcurrencyFields {
    fn faults(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let is_unused = self.limit.is_none_or(|limit| limit == 1)
            && self.strategy.is_none_or(|strategy| strategy == Strategy::default());
        match self.key.as_deref() {
            Some(key) if !is_short_text(key) => errors.push(FieldError::body(
                "/concurrency/key",
                "is 1 to 200 characters without NUL",
            )),
            // Who sets a limit would be served without one.
            None if !is_unused => errors.push(FieldError::body("/concurrency/key", "is missing")),
            _ => {}
        }
        if self.limit.is_some_and(|limit| !(1..=CONCURRENCY_MAX).contains(&limit)) {
            errors.push(FieldError::body(
                "/concurrency/limit",
                format!("is between 1 and {CONCURRENCY_MAX}"),
            ));
        }
        errors
    }

    fn into_concurrency(self) -> Option<Concurrency> {
        let (limit, strategy) = (self.limit.unwrap_or(1), self.strategy.unwrap_or_default());
        self.key.map(|key| Concurrency { key, limit, strategy })
    }
}

impl RateFields {
    fn checked(&self) -> Result<Option<Rate>, Vec<FieldError>> {
        let Some(key) = &self.key else {
            let is_unused = self.limit.is_none() && self.window.is_none();
            let missing = || vec![FieldError::body("/rate/key", "is missing")];
            return if is_unused { Ok(None) } else { Err(missing()) };
        };
        if !is_short_text(key) {
            return Err(vec![FieldError::body(
                "/rate/key",
                "is 1 to 200 characters without NUL",
            )]);
        }
        let view = RateView {
            limit: self.limit.unwrap_or(1),
            window: self.window.clone().unwrap_or_else(|| "1s".to_owned()),
        };
        let (limit, window) = view.checked("/rate")?;
        Ok(Some(Rate {
            key: key.clone(),
            limit,
            window,
        }))
    }
}

/// Reads a body that holds the fields of a job and some others, which `own` names.
///
/// # Errors
/// 400 when it is not a JSON object, 422 with a pointer for a field at fault.
pub fn split<T: DeserializeOwned>(text: &str, own: &[&str]) -> Result<(T, JobFields), Problem> {
    split_at(text, "", own)
}

/// The same for an object that stands at `base` in the body.
///
/// # Errors
/// As [`split`].
pub(crate) fn split_at<T: DeserializeOwned>(text: &str, base: &str, own: &[&str]) -> Result<(T, JobFields), Problem> {
    let all: BTreeMap<String, Box<RawValue>> = from_json(text, base)?;
    let (mine, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = all.iter().partition(|(name, _)| own.contains(&name.as_str()));
    let json = |fields: &BTreeMap<&String, &Box<RawValue>>| serde_json::to_string(fields).unwrap_or_default();
    Ok((
        from_json(&json(&mine), base)?,
        from_json_beside(&json(&rest), base, own)?,
    ))
}

fn or_note<T>(read: Result<T, FieldError>, errors: &mut Vec<FieldError>) -> Option<T> {
    read.map_err(|error| errors.push(error)).ok()
}

/// Reads a duration such as `90s`.
pub(crate) fn duration(pointer: &str, text: &str) -> Result<Duration, FieldError> {
    humantime::parse_duration(text).map_err(|_garbage| FieldError::body(pointer, "is not a duration, such as \"90s\""))
}

pub(crate) fn is_short_text(text: &str) -> bool {
    !text.contains('\0') && (1..=200).contains(&text.chars().count())
}

/// What is wrong with notes that are stored as `jsonb`, below `/metadata`.
pub fn metadata_faults(metadata: &Map<String, Value>) -> Vec<FieldError> {
    if metadata.is_empty() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if metadata.len() > METADATA_KEYS_MAX {
        errors.push(FieldError::body(
            "/metadata",
            format!("has more than {METADATA_KEYS_MAX} keys"),
        ));
    }
    if serde_json::to_vec(metadata).map_or(0, |json| json.len()) > METADATA_BYTES_MAX {
        errors.push(FieldError::body(
            "/metadata",
            format!("is over {METADATA_BYTES_MAX} bytes"),
        ));
    }
    for (key, value) in metadata {
        if key.contains('\0') || has_nul(value) {
            let pointer = format!("/metadata/{}", common::job::invalid::escape(key));
            errors.push(FieldError::body(pointer, "contains NUL, which metadata cannot hold"));
        }
    }
    errors
}

/// Recursion is bounded by the parser that made the value.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
