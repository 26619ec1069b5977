//! `Idempotency-Key`: a repeated submission is answered with the first one's jobs.

use axum::http::{HeaderMap, Method, Uri};
use common::ids::JobId;
use common::job::Job;
use common::store::insert::Idempotency;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::problem::{Code, FieldError, Problem};
use crate::state::App;

const HEADER: &str = "idempotency-key";

/// A key as it was sent.
#[derive(Debug)]
pub(crate) struct Key(String);

impl Key {
    /// The header, if there is one.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let Some(value) = headers.get(HEADER) else {
            return Ok(None);
        };
        let is_visible = |text: &&str| {
            (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        };
        match value.to_str().ok().filter(is_visible) {
            Some(text) => Ok(Some(Self(text.to_owned()))),
            None => Err(Problem::invalid(vec![FieldError::header(
                "Idempotency-Key",
                "is 1 to 255 visible characters",
            )])),
        }
    }

    /// The key with what it was used for.
    pub(crate) fn fingerprint(self, method: &Method, uri: &Uri, body: &[u8]) -> Idempotency {
        let digest = Sha256::new()
            .chain_update(method.as_str())
            .chain_update([0])
            .chain_update(uri.path())
            .chain_update([0])
            .chain_update(body)
            .finalize();
        Idempotency {
            key: self.0,
            fingerprint: digest.into(),
        }
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
