//! Ids and names in paths. What is no id names nothing, so it is a 404.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use uuid::Uuid;

use crate::problem::Problem;

/// The `{id}` of a path.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(pub T);

impl<S: Sync + Send, T: From<Uuid>> FromRequestParts<S> for PathId<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let absent = || Problem::not_found("id");
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_not_utf8| absent())?;
        let id = params
            .iter()
            .find(|(name, _)| *name == "id")
            .and_then(|(_, text)| Uuid::parse_str(text).ok());
        id.map(|id| Self(T::from(id))).ok_or_else(absent)
    }
}

/// The steps of a path that a route gives names to.
#[derive(Clone, Debug)]
pub struct PathSteps(Vec<(String, String)>);

impl PathSteps {
    /// The step of this name; empty when the route has none.
    pub fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, step)| step)
    }
}

impl<S: Sync + Send> FromRequestParts<S> for PathSteps {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|_not_utf8| Problem::not_found("path"))?;
        Ok(Self(
            params
                .iter()
                .map(|(name, step)| (name.to_owned(), step.to_owned()))
                .collect(),
        ))
    }
}
