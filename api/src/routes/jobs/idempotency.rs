//! `Idempotency-Key`: a repeated submission is answered with the first one's jobs.

use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;
use common::ids::JobId;
use common::job::Job;
use common::store::insert::Idempotency;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::problem::{Code, FieldError, Problem};
use crate::state::App;

const HEADER: &str = "idempotency-key";

/// The key of a request, if it has one, with what it is used for.
#[derive(Debug)]
pub(crate) struct Keyed {
    key: Option<String>,
    method: Method,
    path: String,
}

impl<S: Sync> FromRequestParts<S> for Keyed {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let is_visible = |text: &&str| {
            (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        };
        let refused = || FieldError::header("Idempotency-Key", "is 1 to 255 visible characters");
        let key = match parts.headers.get(HEADER) {
            None => None,
            Some(value) => match value.to_str().ok().filter(is_visible) {
                Some(text) => Some(text.to_owned()),
                None => return Err(Problem::invalid(vec![refused()])),
            },
        };
        let path = if key.is_some() {
            parts.uri.path().to_owned()
        } else {
            String::new()
        };
        Ok(Self {
            key,
            method: parts.method.clone(),
            path,
        })
    }
}

impl Keyed {
    /// The key with the fingerprint of the whole request.
    pub(crate) fn fingerprint(self, body: &[u8]) -> Option<Idempotency> {
        let digest = Sha256::new()
            .chain_update(self.method.as_str())
            .chain_update([0])
            .chain_update(self.path)
            .chain_update([0]);
        self.key.map(|key| Idempotency {
            key,
            fingerprint: digest.chain_update(body).finalize().into(),
        })
    }
}

/// The answer to a key that was used with another request.
pub(crate) fn reused() -> Problem {
    let error = FieldError::header("Idempotency-Key", "was used with another request");
    Problem::new(Code::IdempotencyKeyReused, "use another key for another request").with_errors(vec![error])
}

/// The jobs of the first request, in its order; those that were deleted since are missing.
pub(crate) async fn first_jobs(app: &App, caller: &Caller, ids: &[JobId]) -> Result<Vec<Job>, Problem> {
    let mut jobs = app.store().jobs(ids).await?;
    jobs.retain(|job| job.tenant_id == caller.tenant_id());
    jobs.sort_unstable_by_key(|job| ids.iter().position(|id| *id == job.id));
    Ok(jobs)
}
