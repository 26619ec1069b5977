//! `/schedules`: jobs that are submitted by the clock. The scheduler fires them; here they are saved and looked at.

mod backfill;
mod edit;
mod fires;
mod given;
mod read;
mod request;
mod target;
mod transfer;
mod view;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use utoipa_axum::routes;

use crate::problem::{Code, FieldError, Problem};
use crate::routes::Resource;

pub(super) fn routes() -> Resource {
    Resource::new()
        .routes(routes!(edit::create, read::list))
        .routes(routes!(read::preview))
        .routes(routes!(read::get, edit::change, edit::delete))
        .routes(routes!(edit::pause))
        .routes(routes!(edit::resume))
        .routes(routes!(fires::fire))
        .routes(routes!(backfill::backfill))
        .routes(routes!(transfer::export))
        .routes(routes!(transfer::import))
        .routes(routes!(fires::list))
}

/// Adds the entity tag of a version.
fn with_etag(mut response: Response, version: u64) -> Response {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Which versions a request may act on.
#[derive(Clone, Debug)]
enum IfMatch {
    /// Any.
    Any,
    /// One of these tags.
    Tags(Vec<String>),
}

impl IfMatch {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::IF_MATCH) else {
            return Ok(Self::Any);
        };
        let refused = || Problem::invalid(vec![FieldError::header("if-match", "is not a list of entity tags")]);
        let value = value.to_str().map_err(|_not_ascii| refused())?.trim();
        if value == "*" {
            return Ok(Self::Any);
        }
        let tags: Vec<String> = value.split(',').map(|tag| tag.trim().to_owned()).collect();
        let is_tag =
            |tag: &String| tag.trim_start_matches("W/").starts_with('"') && tag.len() >= 2 && tag.ends_with('"');
        if tags.iter().all(is_tag) {
            Ok(Self::Tags(tags))
        } else {
            Err(refused())
        }
    }

    /// Refuses another version. A weak tag matches nothing: RFC 9110 compares strongly here.
    fn check(&self, version: u64) -> Result<(), Problem> {
        match self {
            Self::Tags(tags) if !tags.contains(&format!("\"{version}\"")) => Err(self.refusal()),
            _ => Ok(()),
        }
    }

    /// Whether the request insists on a version.
    fn insists(&self) -> bool {
        matches!(self, Self::Tags(_))
    }

    fn refusal(&self) -> Problem {
        if self.insists() {
            Problem::new(Code::PreconditionFailed, "the schedule was changed since it was read")
        } else {
            Problem::new(Code::Conflict, "the schedule is being changed by others: try again")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::absent(None, Ok(()))]
    #[case::any(Some("*"), Ok(()))]
    #[case::this(Some("\"3\""), Ok(()))]
    #[case::one_of(Some("\"2\", \"3\""), Ok(()))]
    #[case::other(Some("\"2\""), Err(Code::PreconditionFailed))]
    #[case::weak(Some("W/\"3\""), Err(Code::PreconditionFailed))]
    #[case::garbage(Some("3"), Err(Code::InvalidRequest))]
    fn a_version_is_matched_by_its_tag(#[case] header: Option<&'static str>, #[case] expected: Result<(), Code>) {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(header::IF_MATCH, HeaderValue::from_static(value));
        }
        let checked = IfMatch::read(&headers).and_then(|tags| tags.check(3));
        assert_eq!(checked.map_err(|problem| problem.code()), expected);
    }
}
