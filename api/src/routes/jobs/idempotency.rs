//! `Idempotency-Key`: a repeated submission is answered with the first one's jobs.

use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::Response;
use common::ids::JobId;
use common::job::Job;
use common::store::idempotency::Idempotency;
use common::store::insert::Accepted;
use sha2::{Digest, Sha256};

use super::accepted_job;
use crate::auth::Caller;
use crate::openapi::BASE;
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
            // As it is remembered: below the base path.
            let path = parts.uri.path();
            path.strip_prefix(BASE).unwrap_or(path).to_owned()
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
            refused: Vec::new(),
        })
    }
}

/// The answer to a key that was used with another request.
pub(crate) fn reused() -> Problem {
    let error = FieldError::header("Idempotency-Key", "was used with another request");
    Problem::new(Code::IdempotencyKeyReused, "use another key for another request").with_errors(vec![error])
}

/// The jobs of an earlier request like this one, in their places; `None` when there was none. Whoever would refuse a request
/// asks this first: one that was accepted is answered as it was then, whatever has changed since.
pub(crate) async fn earlier(
    app: &App,
    caller: &Caller,
    idempotency: Option<&Idempotency>,
) -> Result<Option<Vec<Option<JobId>>>, Problem> {
    let Some(idempotency) = idempotency else {
        return Ok(None);
    };
    match app.store().earlier(caller.tenant_id(), idempotency).await? {
        Some(Accepted::Repeated(ids)) => Ok(Some(ids)),
        Some(Accepted::KeyReused) => Err(reused()),
        _ => Ok(None),
    }
}

/// The answer to a request for one job that would be refused for this problem.
pub(crate) async fn earlier_or(
    app: &App,
    caller: &Caller,
    idempotency: Option<&Idempotency>,
    problem: Problem,
) -> Result<Response, Problem> {
    match earlier(app, caller, idempotency).await? {
        Some(ids) => first_job(app, caller, &ids).await,
        None => Err(problem),
    }
}

/// 202 with the job of the first request.
pub(crate) async fn first_job(app: &App, caller: &Caller, ids: &[Option<JobId>]) -> Result<Response, Problem> {
    let first = first_jobs(app, caller, ids).await?;
    first.first().map(accepted_job).ok_or_else(gone)
}

/// The answer in the place of a job that was deleted since.
pub(crate) fn gone() -> Problem {
    Problem::not_found("job: the first one is gone")
}

/// The jobs of the first request; those that were deleted since are missing.
pub(crate) async fn first_jobs(app: &App, caller: &Caller, ids: &[Option<JobId>]) -> Result<Vec<Job>, Problem> {
    let ids: Vec<JobId> = ids.iter().copied().flatten().collect();
    let mut jobs = app.store().jobs(&ids).await?;
    jobs.retain(|job| job.tenant_id == caller.tenant_id());
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[tokio::test]
    async fn a_request_is_remembered_by_its_path_below_the_base() {
        let (mut parts, ()) = Request::post("/api/v1/jobs?x=1")
            .header(HEADER, "key")
            .body(())
            .unwrap()
            .into_parts();
        let keyed = Keyed::from_request_parts(&mut parts, &()).await.unwrap();

        // As every version did: a client that repeats its request over an upgrade gets its first answer.
        let expected: [u8; 32] = Sha256::digest(b"POST\0/jobs\0{}").into();
        assert_eq!(keyed.fingerprint(b"{}").unwrap().fingerprint, expected);
    }
}
