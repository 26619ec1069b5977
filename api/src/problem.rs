//! Errors as clients see them: RFC 9457 `application/problem+json` with a closed set of codes.
//!
//! Internal text goes to the log, once, here; the client gets the request's id to ask with.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::job::invalid::InvalidField;
use common::store;
use serde::Serialize;
use utoipa::ToSchema;

use crate::request::current_id;

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The body is not JSON, or not UTF-8.
    MalformedBody,
    /// A field, a parameter or a header is not what it should be.
    InvalidRequest,
    /// The body has another type than `application/json`.
    UnsupportedMediaType,
    /// The body, or a part of it, is too long.
    TooLarge,
    /// There is no valid key.
    Unauthenticated,
    /// The key may not do this.
    Forbidden,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    /// The path is known, the method is not.
    MethodNotAllowed,
    /// The thing is in a state that does not allow this.
    Conflict,
    /// The job's concurrency key has no place, and its strategy is `reject`.
    ConcurrencyLimit,
    /// The thing was changed since the version that `If-Match` names.
    PreconditionFailed,
    /// The range of a file begins behind its end.
    RangeNotSatisfiable,
    /// The `Idempotency-Key` was used with another request.
    IdempotencyKeyReused,
    /// Too many requests.
    RateLimited,
    /// Something that this needs is away.
    Unavailable,
    /// It took too long.
    RequestTimeout,
    /// A fault of Hothouse.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::MalformedBody,
        Self::InvalidRequest,
        Self::UnsupportedMediaType,
        Self::TooLarge,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::ConcurrencyLimit,
        Self::PreconditionFailed,
        Self::RangeNotSatisfiable,
        Self::IdempotencyKeyReused,
        Self::RateLimited,
        Self::Unavailable,
        Self::RequestTimeout,
        Self::Internal,
    ];

    /// The status, the name on the wire and the title.
    pub fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::MalformedBody => (StatusCode::BAD_REQUEST, "malformed_body", "The body is not JSON"),
            Self::InvalidRequest => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_request",
                "The request is not valid",
            ),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "The body must be application/json",
            ),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large"),
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                "A valid API key is required",
            ),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "The API key may not do this"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "There is no such thing"),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The path does not have this method",
            ),
            Self::Conflict => (
                StatusCode::CONFLICT,
                "conflict",
                "The present state does not allow this",
            ),
            Self::ConcurrencyLimit => (
                StatusCode::CONFLICT,
                "concurrency_limit",
                "The concurrency key has no free place",
            ),
            Self::PreconditionFailed => (
                StatusCode::PRECONDITION_FAILED,
                "precondition_failed",
                "It was changed since it was read",
            ),
            Self::RangeNotSatisfiable => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                "The file has no such bytes",
            ),
            Self::IdempotencyKeyReused => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The idempotency key was used with another request",
            ),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited", "Too many requests"),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "Something that this needs is away",
            ),
            Self::RequestTimeout => (
                StatusCode::SERVICE_UNAVAILABLE,
                "request_timeout",
                "The request took too long",
            ),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "A fault of ours"),
        }
    }
}

/// Something in the request that is not what it should be. One of the first three says where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The name of a query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The name of a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// What is wrong.
    pub detail: String,
}

impl FieldError {
    /// In the body.
    pub fn body(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: Some(pointer.into()),
            detail: detail.into(),
            ..Self::default()
        }
    }

    /// In the query.
    pub fn query(parameter: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            parameter: Some(parameter.into()),
            detail: detail.into(),
            ..Self::default()
        }
    }

    /// In a header.
    pub fn header(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            header: Some(name.into()),
            detail: detail.into(),
            ..Self::default()
        }
    }

    /// The place, for a sentence.
    fn place(&self) -> &str {
        [&self.pointer, &self.parameter, &self.header]
            .into_iter()
            .find_map(Option::as_deref)
            .unwrap_or_default()
    }
}

impl From<InvalidField> for FieldError {
    fn from(fault: InvalidField) -> Self {
        Self::body(fault.pointer, fault.detail)
    }
}

/// What is wrong with one request: an answer must not be many times as long as what it answers.
const ERRORS_MAX: usize = 50;

/// An answer that says what went wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// A problem with a sentence about this very case.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// There is no such thing, or it is another tenant's: the answer is the same.
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no such {what}"))
    }

    /// 422 with what is wrong, one field or more; of many the first [`ERRORS_MAX`] are named.
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [] => "the request is not valid".to_owned(),
            [only] => format!("{} {}", only.place(), only.detail),
            [first, rest @ ..] => format!("{} {}, and {} more", first.place(), first.detail, rest.len()),
        };
        errors.truncate(ERRORS_MAX);
        Self {
            errors,
            ..Self::new(Code::InvalidRequest, detail)
        }
    }

    /// 422 for one field of the body.
    pub fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::body(pointer, detail)])
    }

    /// 503 for a dependency that is away.
    pub fn unavailable(what: &'static str) -> Self {
        Self {
            retry_after: Some(Duration::from_secs(2)),
            ..Self::new(Code::Unavailable, what)
        }
    }

    /// Names the fields that are at fault.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// What went wrong.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The document.
    pub fn document(&self) -> Document {
        let (status, code, title) = self.code.parts();
        Document {
            kind: format!("/docs#problem-{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone().into_owned(),
            code: self.code,
            request_id: current_id(),
            errors: self.errors.clone(),
        }
    }
}

/// A problem on the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document {
    /// Where the code is explained.
    #[serde(rename = "type")]
    pub kind: String,
    /// What went wrong, the same for every case of the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// What went wrong, for programs.
    pub code: Code,
    /// Names the request in our logs.
    pub request_id: String,
    /// The fields at fault.
    pub errors: Vec<FieldError>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, ..) = self.code.parts();
        let body = serde_json::to_vec(&self.document()).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        let chain = || format!("{:#}", anyhow::Error::msg(describe(&error)));
        match error.class() {
            store::Class::Transient => {
                metrics::counter!("hothouse_http_dependency_errors_total", "dependency" => "postgres").increment(1);
                tracing::debug!(request_id = current_id(), error = chain(), "postgres is not available");
                Self::unavailable("the database is not available")
            }
            store::Class::Data => {
                tracing::warn!(
                    request_id = current_id(),
                    error = chain(),
                    "postgres refused what validation let through"
                );
                Self::new(Code::InvalidRequest, "the request contains data that cannot be stored")
            }
            store::Class::LeaseLost => Self::new(Code::Conflict, "it has changed meanwhile"),
            store::Class::Bug => {
                tracing::error!(request_id = current_id(), error = chain(), "query failed");
                Self::new(Code::Internal, "the fault is in our log under this request's id")
            }
        }
    }
}

/// An error and its sources in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_as_its_parts_say() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.parts().1);
        }
    }

    #[test]
    fn the_detail_of_one_fault_names_the_field() {
        let problem = Problem::field("/priority", "is between 0 and 9");
        assert_eq!(problem.detail, "/priority is between 0 and 9");
    }
}
