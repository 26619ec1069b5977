//! Query parameters: each is asked for by name, and what nobody asked for is refused.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::problem::{FieldError, Problem};

/// Items of a list that gives no `limit`.
const LIMIT_DEFAULT: u32 = 50;
/// Most items of one page.
const LIMIT_MAX: u32 = 200;

/// The query of a request. Take what the route knows, then call [`Params::finish`].
#[derive(Clone, Debug)]
pub struct Params {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self::read(query))
    }
}

impl Params {
    fn read(query: &str) -> Self {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut errors = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
            if name.contains('\0') || value.contains('\0') {
                errors.push(FieldError::query(name.replace('\0', "\u{fffd}"), "contains NUL"));
            } else if pairs.iter().any(|(known, _)| *known == name) {
                errors.push(FieldError::query(name, "is given twice"));
            } else {
                pairs.push((name, value));
            }
        }
        Self { pairs, errors }
    }

    /// Takes a parameter as text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let index = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.swap_remove(index).1)
    }

    /// Takes every parameter whose name begins with `prefix`, without it.
    pub fn prefixed(&mut self, prefix: &str) -> Vec<(String, String)> {
        let mut taken = Vec::new();
        self.pairs.retain_mut(|(name, value)| match name.strip_prefix(prefix) {
            Some(rest) => {
                taken.push((rest.to_owned(), std::mem::take(value)));
                false
            }
            None => true,
        });
        taken
    }

    /// Takes a parameter that `read` understands; `expected` says what that is.
    pub fn read_as<T>(&mut self, name: &str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(name)?;
        let value = read(&text);
        if value.is_none() {
            self.errors.push(FieldError::query(name, format!("is not {expected}")));
        }
        value
    }

    /// Takes a parameter of a type that can be parsed.
    pub fn parsed<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        self.read_as(name, expected, |text| text.parse().ok())
    }

    /// Takes `limit`.
    pub fn limit(&mut self) -> u32 {
        let limit = self.read_as("limit", &format!("a number between 1 and {LIMIT_MAX}"), |text| {
            text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
        });
        limit.unwrap_or(LIMIT_DEFAULT)
    }

    /// Takes `cursor`.
    pub fn cursor<T: From<Uuid>>(&mut self) -> Option<T> {
        self.read_as("cursor", "a cursor that a list of ours gave", |text| {
            Cursor::decode(text).map(T::from)
        })
    }

    /// Refuses what is left over and what could not be read.
    ///
    /// # Errors
    /// 422 that names each parameter.
    pub fn finish(mut self) -> Result<(), Problem> {
        let unknown = self
            .pairs
            .drain(..)
            .map(|(name, _)| FieldError::query(name, "is not a parameter of this list"));
        self.errors.extend(unknown);
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.errors))
        }
    }
}

/// A place in a list that is ordered by id: the id of the last item, opaque to clients.
#[derive(Clone, Copy, Debug)]
pub struct Cursor;

impl Cursor {
    /// The version of what is inside.
    const VERSION: u8 = 1;

    /// The cursor after an item.
    pub fn encode(id: impl Into<Uuid>) -> String {
        let mut bytes = vec![Self::VERSION];
        bytes.extend_from_slice(id.into().as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn decode(text: &str) -> Option<Uuid> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, id) = bytes.split_first()?;
        (*version == Self::VERSION).then(|| Uuid::from_slice(id).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(problem: &Problem) -> Vec<String> {
        problem
            .document()
            .errors
            .into_iter()
            .filter_map(|error| error.parameter)
            .collect()
    }

    #[test]
    fn every_bad_parameter_is_named() {
        let mut params = Params::read("limit=0&cursor=%F0%9F&q=%00&x=1&limit=2");
        assert_eq!(params.limit(), LIMIT_DEFAULT);
        assert_eq!(params.cursor::<Uuid>(), None);
        let mut found = names(&params.finish().unwrap_err());
        found.sort_unstable();
        assert_eq!(found, ["cursor", "limit", "limit", "q", "x"]);
    }

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let id = Uuid::now_v7();
        assert_eq!(Cursor::decode(&Cursor::encode(id)), Some(id));
        assert_eq!(Cursor::decode("AQID"), None);
        assert_eq!(Cursor::decode("*"), None);
    }

    #[test]
    fn prefixed_parameters_are_taken_together() {
        let mut params = Params::read("metadata.a=1&metadata.b.c=2");
        let mut taken = params.prefixed("metadata.");
        taken.sort_unstable();
        assert_eq!(
            taken,
            [("a".to_owned(), "1".to_owned()), ("b.c".to_owned(), "2".to_owned())]
        );
        params.finish().unwrap();
    }
}
